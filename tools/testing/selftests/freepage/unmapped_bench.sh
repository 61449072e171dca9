#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# What memory outside the direct map, modules and BPF programs cost, with and
# without the unmapped page allocator: one line for each figure. With QEMU's
# "-icount shift=0,sleep=off" and one CPU a ns is an instruction, so that the
# figures are the same in every run. Wants 2 GiB of memory, of one node.
#
# unmapped_bench.sh PART...: faults, text (on fresh memory), fragmented (text on
# fragmented memory) or together (1 to 8 CPUs at once). Each changes what a later
# one finds, and so wants a guest of its own; "fragmented" one whose root is in
# ramfs (rootfstype=ramfs).

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"

RACE=/sys/kernel/debug/unmapped_race
JIT_TEST=/sys/kernel/debug/jit_test
TRACING=/sys/kernel/tracing
PAGE_TABLES=/sys/kernel/debug/page_tables/kernel
MODULES="$HERE/test_module"

PAGES=100000
SECRETS="$PAGES secretmem faults and ordinary allocation"

# emit CASE METRIC UNIT VALUE
emit() {
	printf 'bench: {"bench":"unmapped","case":"%s","metric":"%s","unit":"%s","value":%s}\n' \
		"$1" "$2" "$3" "$4"
}

give_up() {
	echo "bench: $*" >&2
	exit "$KSFT_FAIL"
}

# ratio A B: A / B with three digits after the point.
ratio() {
	echo "$(($1 / $2)).$(printf %03d $((($1 % $2) * 1000 / $2)))"
}

vm() { awk -v name="$1" '$1 == name { print $2 }' /proc/vmstat; }
mem() { awk -v name="$1:" '$1 == name { print $2 }' /proc/meminfo; }

# Until nothing more returns to the direct map: the kernel's own text stays outside.
drop_cache() {
	last=
	until [ "$(mem Unmapped)" = "$last" ]; do
		last=$(mem Unmapped)
		echo 3 > /proc/sys/vm/drop_caches
		sleep 1
	done
}

# mark_splits, and then splits CASE: entries of the direct map, and of text, that
# were split since.
mark_splits() {
	pmds=$(vm direct_map_level2_splits)
	puds=$(vm direct_map_level3_splits)
}

splits() {
	emit "$1" "PMD splits" splits $(($(vm direct_map_level2_splits) - pmds))
	emit "$1" "PUD splits" splits $(($(vm direct_map_level3_splits) - puds))
}

# probe GROUP TYPE:NAME FUNCTION [ARGUMENT]: an event of that group, which is off.
probe() {
	echo "${2%%:*}:$1/${2#*:} $3${4:+ $4}" >> $TRACING/kprobe_events ||
		give_up "cannot probe $3: no such function, or no CONFIG_KPROBE_EVENTS"
}

# Whatever takes kernel addresses out of all TLBs, and one page out of one's own.
FLUSHES="flush_tlb_kernel_range flush_tlb_all __cpa_flush_all __cpa_flush_tlb"
LOCAL=flush_tlb_one_kernel

# The times of what the allocators of text are asked for.
probe_all() {
	grep -q x86-tsc $TRACING/trace_clock || give_up "no trace clock x86-tsc"
	echo x86-tsc > $TRACING/trace_clock
	echo 16384 > $TRACING/buffer_size_kb
	for function in $FLUSHES $LOCAL; do
		probe flush "p:$function" "$function"
	done
	probe text p:module execmem_alloc_rw type=%di:u32
	probe text r:module_end execmem_alloc_rw
	probe text p:bpf bpf_prog_pack_alloc
	probe text r:bpf_end bpf_prog_pack_alloc
}

# watch_flushes, and then unwatch_flushes: sets "flushed" and "local" to how often.
watch_flushes() {
	flushed=$(calls "$FLUSHES")
	local=$(calls "$LOCAL")
	echo 1 > $TRACING/events/flush/enable
}

calls() {
	awk -v names="$1" 'index(" " names " ", " " $1 " ") { sum += $2 }
		END { print sum + 0 }' $TRACING/kprobe_profile
}

unwatch_flushes() {
	echo 0 > $TRACING/events/flush/enable
	flushed=$(($(calls "$FLUSHES") - flushed))
	local=$(($(calls "$LOCAL") - local))
}

watch_text() {
	echo > $TRACING/trace
	echo 1 > $TRACING/events/text/enable
}

# unwatch_text CASE EVENT [CONDITION]: how long each such call took.
unwatch_text() {
	echo 0 > $TRACING/events/text/enable
	times=$(awk -v begin="$2:" -v end="$2_end:" -v wanted="$3" '
		{
			for (i = 1; i < NF && $i !~ /^[0-9]+:$/; i++)
				;
			time = $i + 0
			event = $(i + 1)
		}
		event == begin { started = index($0, wanted) ? time : 0 }
		event == end && started {
			time -= started
			started = 0
			if (!count++ || time < best)
				best = time
			if (time > worst)
				worst = time
			sum += time
		}
		END {
			if (count)
				printf "%d %d %d\n", best, sum / count, worst
		}' $TRACING/trace)
	[ -n "$times" ] || give_up "$1: no allocation was traced"
	emit "$1" "an allocation, best" instructions "${times%% *}"
	times=${times#* }
	emit "$1" "an allocation, mean" instructions "${times% *}"
	emit "$1" "an allocation, worst" instructions "${times#* }"
}

# The part of all executable memory for modules that has large mappings, in %.
emit_share() {
	share=$(awk '
		/^---\[/ { modules = /Modules/ }
		modules && $NF != "" && / x / {
			unit = substr($2, length($2))
			size = $2 + 0
			size *= unit == "G" ? 1048576 : unit == "M" ? 1024 : 1
			all += size
			if ($NF == "pmd")
				large += size
		}
		END { if (all) printf "%.1f\n", 100 * large / all }' $PAGE_TABLES)
	[ -n "$share" ] || give_up "no executable memory in $PAGE_TABLES"
	emit "$1" "text on 2M mappings" % "$share"
}

# 90 KiB of text on average.
modules() {
	count=$1
	"$HERE/module_load" "$count" "$MODULES/text_10.ko" "$MODULES/text_90.ko" \
		"$MODULES/text_170.ko" > /dev/null || give_up "cannot load modules"
}

large_module() {
	"$HERE/module_load" "$1" "$MODULES/text_2200.ko" > /dev/null ||
		give_up "cannot load a module of 2200 KiB"
}

load_modules() {
	large_module 1
	modules 199
}

unload_modules() {
	modules -199
	large_module -1
}

# bench_modules MEMORY
bench_modules() {
	what="200 modules, $1 memory"
	mark_splits
	watch_flushes
	load_modules
	unwatch_flushes
	emit_share "$what"
	splits "$what"
	emit "$what" "TLB flushes" flushes "$flushed"
	mark_splits
	watch_flushes
	unload_modules
	unwatch_flushes
	splits "$what, unloaded"
	emit "$what, unloaded" "TLB flushes" flushes "$flushed"
	watch_text
	load_modules
	unwatch_text "$what, once more" module "type=0"
	unload_modules
}

load_bpf() {
	"$HERE/bpf_load" 1000 true > /dev/null || give_up "cannot load BPF programs"
}

# bench_bpf MEMORY
bench_bpf() {
	what="1000 BPF programs, $1 memory"
	mark_splits
	watch_flushes
	load_bpf
	unwatch_flushes
	splits "$what"
	emit "$what" "TLB flushes" flushes "$flushed"
	watch_text
	load_bpf
	unwatch_text "$what, once more" bpf bpf:
}

# Programs of more than a page; those that are unloaded count, too.
bench_large_bpf() {
	for kib in 5 20 64; do
		what="100 BPF programs of $kib KiB"
		mark_splits
		watch_flushes
		"$HERE/bpf_load" "100x$kib" true > /dev/null || give_up "cannot load $what"
		unwatch_flushes
		splits "$what"
		emit "$what" "TLB flushes" flushes "$flushed"
		watch_text
		"$HERE/bpf_load" "100x$kib" true > /dev/null || give_up "cannot load $what"
		unwatch_text "$what, once more" bpf bpf:
	done
}

bench_text() {
	bench_modules fresh
	bench_bpf fresh
	bench_large_bpf
}

bench_fragmented() {
	fragment 6 || give_up "memory cannot be fragmented: build freepage_test.ko and HUGETLBFS"
	bench_modules fragmented
	bench_bpf fragmented
	defragment
}

bench_faults() {
	drop_cache
	mark_splits
	before=$(mem DirectMap2M)
	watch_flushes
	"$HERE/secretmem_bench" "$PAGES" 1 > /tmp/times || give_up "secretmem_bench failed"
	unwatch_flushes
	splits "$SECRETS"
	# A page taken and given back.
	emit "$SECRETS" "TLB flushes for 512 pages" flushes \
		"$(ratio $((flushed * 512)) "$PAGES")"
	emit "$SECRETS" "pages that one CPU drops from its TLB for 512 pages" pages \
		"$(ratio $((local * 512)) "$PAGES")"
	drop_cache
	emit "$SECRETS" "DirectMap2M before" KiB "$before"
	emit "$SECRETS" "DirectMap2M during" KiB "$(awk '{ print $3 }' /tmp/times)"
	emit "$SECRETS" "DirectMap2M after" KiB "$(mem DirectMap2M)"
	"$HERE/secretmem_bench" "$PAGES" 2 > /tmp/times || give_up "secretmem_bench failed"
	for round in first again; do
		read -r faults busy _
		emit "$SECRETS" "a page touched, $round" "instructions and bytes" \
			"$(ratio "$faults" "$PAGES")"
		emit "$SECRETS" "a page given back, $round" "instructions and bytes" \
			"$(ratio "$busy" "$PAGES")"
	done < /tmp/times
	drop_cache
}

# bench_jit CPUS CASE, where there is such an allocator
bench_jit() {
	[ -e $JIT_TEST ] || return
	# Pages that were freed are still being cleared.
	sleep 1
	echo 1000 > $JIT_TEST/loops
	echo "$1" > $JIT_TEST/bench || give_up "jit_test failed on $1 CPUs"
	awk '{ print $1, $5, $7 }' $JIT_TEST/result > /tmp/result
	while read -r call count time; do
		emit "$2" "jit_$call()" instructions "$(ratio "$time" "$count")"
	done < /tmp/result
}

# race CPUS WHAT: they all allocate and free.
race() { echo "$1" > "$RACE/$2" || give_up "no $2 on $1 CPUs"; }

# bench_on CPUS: instructions of all of them. What they execute as they spin counts,
# what they sleep does not.
bench_on() {
	what="$1 of 8 CPUs at once"
	time=$("$HERE/secretmem_bench" 2048 4 "$1") || give_up "secretmem_bench failed"
	emit "$what" "a secretmem page, taken and given back" instructions \
		"$(ratio "$time" $((2048 * 4 * $1)))"
	if [ -e /sys/kernel/debug/unmapped_alloc ]; then
		race "$1" pages
		emit "$what" "unmapped_pages_alloc() and its free" instructions "$(get $RACE/pages)"
	fi
	bench_jit "$1" "$what"
	# Last: what was freed is overwritten later if somebody else writes text.
	race "$1" text
	emit "$what" "execmem_alloc() of 8 KiB and its free" instructions "$(get $RACE/text)"
}

bench_together() {
	[ "$(nproc)" -ge 8 ] || give_up "$(nproc) CPUs are too few: there have to be 8"
	insmod "$MODULES/unmapped_race.ko" || give_up "cannot load unmapped_race.ko"
	insmod "$MODULES/jit_test.ko" 2> /dev/null
	for cpus in 1 2 4 8; do
		bench_on $cpus
	done
}

begin > /dev/null
[ -n "$ONLY" ] || give_up "name a part: faults, text, fragmented or together"
mount_debugfs
[ -e "$PAGE_TABLES" ] || give_up "no $PAGE_TABLES (CONFIG_PTDUMP_DEBUGFS)"
[ -w $TRACING/kprobe_events ] || give_up "no $TRACING/kprobe_events (CONFIG_KPROBE_EVENTS)"
probe_all
for part in $ONLY; do
	case $part in
	faults | text | fragmented | together) "bench_$part" ;;
	*) give_up "no part '$part': there are faults, text, fragmented and together" ;;
	esac
done
echo "bench: done"
