# SPDX-License-Identifier: GPL-2.0
#
# The only entry point. What the targets do is in tools/guest, in Rust; this
# file only sees to it that there is a cargo to build that with.

FREEPAGE_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/freepage
# What is not set is not passed on: an empty value is not the default.
export FREEPAGE_CACHE $(foreach name,CONFIG KSRC RUN APPEND MEMORY CPUS TIMEOUT FILES QEMU DRY \
	TEST CASE VERIFY STEPS RESUME TDX SNP HARDWARE FIRMWARE PLUGIN UNACCEPTED,$(if $($(name)),$(name)))
# The variables of the command line, and what they are for: a misspelt one is an error.
export FREEPAGE_GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
export FREEPAGE_TARGETS := $(MAKECMDGOALS)

# Neither make nor the kernel's make can work there.
ifneq ($(words $(FREEPAGE_CACHE)),1)
$(error FREEPAGE_CACHE=$(FREEPAGE_CACHE): the kernel cannot be built in a folder with a space in its path)
endif

GUEST := $(FREEPAGE_CACHE)/target/release/guest

.PHONY: help
help:
	@echo 'Usage: make TARGET [VARIABLE=value ...]'
	@echo
	@sed -n 's/^\([a-z%-]*\): .*## \(.*\)/\1 \2/p' Makefile | \
		while read -r name text; do printf '  %-16s %s\n' "$$name" "$$text"; done
	@echo
	@echo '  FREEPAGE_CACHE   where everything that is downloaded or built is kept'
	@echo '                   ($(FREEPAGE_CACHE))'
	@echo '  RUN='\''command'\''    with boot: prints what it prints; TIMEOUT=5m for a longer one'
	@echo '  FILES=folder     with boot: is /files in the guest'
	@echo '  QEMU='\''options'\''   with boot: more options of QEMU'\''s; DRY=1 only prints the command line'
	@echo '  TDX=1 or SNP=1   with boot and kselftest: a TDX or SEV-SNP guest, emulated;'
	@echo '                   with HARDWARE=1 (and FIRMWARE=image), on hardware'
	@echo '  PLUGIN           more options of the emulation: check=on,cost-ns=8000'
	@echo '  UNACCEPTED       which of its memory is unaccepted: all-but=1G unaligned'
	@echo '  KSRC             a Linux 7.3 source, as a folder or tarball, instead of the'
	@echo '                   distribution'\''s or upstream'\''s'

# The first cargo that knows the 2024 edition; without one, the distribution's is
# installed (Debian 12 has it as cargo-web). Everything else, `setup` does.
.PHONY: tool
tool:
	@case "$$(uname -sm)" in 'Linux x86_64') ;; *) \
		echo "this is $$(uname -sm): kernels are built and run on x86-64 Linux only" >&2; exit 1;; esac
	@new() { command -v cargo >/dev/null && \
		cargo --version | awk '{ split($$2, v, "."); exit !(v[1] > 1 || v[2] >= 85) }'; }; \
	new || { \
		if [ "$$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then \
			echo 'cargo 1.85 or later is needed: install Rust (rustup.rs, or your distribution), or run this as root on Debian or Ubuntu' >&2; \
			exit 1; \
		fi; \
		. /etc/os-release; \
		case "$$ID$$VERSION_ID" in debian12) web=-web;; *) web=;; esac; \
		echo "installing cargo$$web" >&2; \
		mkdir -p '$(FREEPAGE_CACHE)/logs'; \
		{ apt-get update && DEBIAN_FRONTEND=noninteractive \
			apt-get install -y --no-install-recommends cargo$$web rustc$$web gcc libc6-dev ca-certificates; \
		} >'$(FREEPAGE_CACHE)/logs/cargo-install.log' 2>&1 || { \
			tail -n 20 '$(FREEPAGE_CACHE)/logs/cargo-install.log' >&2; exit 1; }; \
		hash -r; \
		new || { echo 'the cargo of this distribution is older than 1.85: install Rust from rustup.rs' >&2; exit 1; }; \
	}
	@cargo build --quiet --release --locked --manifest-path tools/guest/Cargo.toml \
		--target-dir '$(FREEPAGE_CACHE)/target'

.PHONY: setup tree build boot demo check check-all check-upstream kunit kselftest coco host-memory lint bench series clean
setup: tool ## install what is missing (part of all others)
	@$(GUEST) setup
tree: tool ## lay out the kernel tree: base, overlay, patches
	@$(GUEST) tree
build: tool ## build a kernel and its kselftests; CONFIG=guest (default), base, debug, ...
	@$(GUEST) build
boot: tool ## a shell in the guest (Ctrl-A x leaves), or RUN='command'; CONFIG, MEMORY=3G, CPUS, APPEND, ...
	@$(GUEST) boot
demo: tool ## see memory that a guest frees go back to its host
	@$(GUEST) demo
check: tool ## run every test; STEPS='kselftest debug, lint' for some, RESUME=1 after an interruption
	@$(GUEST) check
check-all: tool ## ... and what is long or rare: each option alone, modes on many CPUs, VERIFY=all
	@$(GUEST) check --all
check-upstream: tool ## run the kernel's own selftests of memory management on base and ours; compare
	@$(GUEST) check-upstream
kunit: tool ## run the KUnit tests, on UML and in the guest; CONFIG
	@$(GUEST) kunit
kselftest: tool ## run the kselftests in the guest; CONFIG, TEST=freepage:NAME for one
	@$(GUEST) kselftest
coco: tool ## run kernels as emulated TDX and SEV-SNP guests; see that mistakes are caught; CASE='tdx base'
	@$(GUEST) coco
host-memory: tool ## check that freed memory comes back to the host; CONFIG
	@$(GUEST) host-memory
lint: tool ## rustfmt, clippy, shellcheck, checkpatch
	@$(GUEST) lint
bench: tool ## compare the Rust and the C implementations: all benches
	@$(GUEST) bench
bench-%: tool ## ... or one of them: bench-reporting, bench-unmapped, bench-zero, bench-accept, bench-coco
	@$(GUEST) bench $*
series: tool ## write the series for git am; VERIFY=all also builds every step of it
	@$(GUEST) series
clean: tool ## remove trees, build folders and logs; downloads and tools stay
	@$(GUEST) clean
