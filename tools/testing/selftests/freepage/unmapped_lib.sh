# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
#
# What the tests of the unmapped page allocator share, on top of lib.sh.

TABLE=/sys/kernel/debug/unmapped_alloc
TEST=/sys/kernel/debug/unmapped_test
PM_TEST=/sys/power/pm_test

# cell ROW ORDER: of the table for all nodes.
cell() {
	get "$TABLE" | awk -v row="$1:" -v column=$(($2 + 2)) \
		'$1 == row && !done { print $column; done = 1 }'
}

# What each CPU has counted is summed up now and then only, or on demand.
REFRESH=/proc/sys/vm/stat_refresh
KEEP=/sys/module/unmapped_alloc/parameters/keep_ms
refresh() { [ ! -w "$REFRESH" ] || echo 1 > "$REFRESH"; }

vm() {
	refresh
	awk -v name="$1" '$1 == name { print $2 }' /proc/vmstat
}

mem() {
	refresh
	awk -v name="$1:" '$1 == name { print $2 }' /proc/meminfo
}

# What the direct map is mapped by: nothing may be left of what a test did to it.
direct_map() { grep '^DirectMap' /proc/meminfo | tr -s '\n ' ' '; }

# KiB outside the direct map that had nothing to do with the tests when they
# began: text of modules, or pages that were found broken.
OTHERS=0

# unmapped_is KIB: besides those.
unmapped_is() { [ "$(mem Unmapped)" -eq $((OTHERS + $1)) ]; }
direct_map_is() { [ "$(direct_map)" = "$1" ]; }

free_pages() {
	get "$TABLE" | awk '
		$1 == "Free:" && !done {
			size = 1
			for (i = 2; i <= NF; i++) {
				sum += $i * size
				size *= 2
			}
			print sum
			done = 1
		}'
}
free_pages_are() { [ "$(free_pages)" -eq "$1" ]; }

count_others() {
	for _ in 1 2 3 4 5 6; do
		OTHERS=$(mem Unmapped)
		echo 3 > /proc/sys/vm/drop_caches
		# Without stat_refresh they are late by up to a second.
		sleep 1.1
		! free_pages_are 0 || ! unmapped_is 0 || break
	done
}

# drop_cache [KIB]: until nothing is cached, and all that is in use is KIB.
drop_cache() {
	for _ in 1 2 3 4 5 6; do
		echo 3 > /proc/sys/vm/drop_caches
		wait_for 1 unmapped_is "${1:-0}" && return
	done
	wanted=$((OTHERS + ${1:-0}))
	fail "Unmapped is $(mem Unmapped) kB after dropping caches, expected $wanted kB"
}

insert_test() {
	mount_debugfs
	[ -d "$TEST" ] || insmod "$HERE/test_module/unmapped_test.ko" 2> /dev/null ||
		modprobe -q unmapped_test 2> /dev/null
}

# What the scripts do before their first test.
begin_unmapped() {
	begin
	mount_debugfs
	[ -e "$TABLE" ] || {
		ktap_skip_all "no $TABLE (CONFIG_UNMAPPED_ALLOC)"
		exit "$KSFT_SKIP"
	}
	insert_test
	# On a slow machine a test takes longer than pages are kept that nobody wants.
	KEPT=$(get "$KEEP")
	put 0 "$KEEP"
	count_others
}

load_test() {
	insert_test
	[ -d "$TEST" ] || skip "unmapped_test.ko was not built for this kernel"
	put 0 "$TEST/held"
	put 0 "$TEST/order"
}

# cpu_of NODE: its first CPU, as a mask for taskset; nothing if it has none.
cpu_of() {
	cpu=$(sed 's/[-,].*//' "/sys/devices/system/node/node$1/cpulist")
	[ -z "$cpu" ] || printf '%x' $((1 << cpu))
}

# hold_blocks COUNT: on one CPU, so from one node.
hold_blocks() {
	taskset 1 sh -c "echo $1 > $TEST/held" || fail "cannot hold $1 blocks"
}

# secret MIB ROUNDS [PROCESSES]
secret() {
	"$HERE/secretmem_check" "$@"
	case $? in
	0) ;;
	"$KSFT_SKIP") skip "no memfd_secret(2)" ;;
	*) fail "secretmem_check $* failed" ;;
	esac
}

# hold_secret MIB: until release_secret. Its first page is at secret_pfn, and one
# in the midst of 64 KiB at inner_pfn.
hold_secret() {
	rm -f /tmp/secret.in /tmp/secret.out
	mkfifo /tmp/secret.in || skip "/tmp cannot be written"
	"$HERE/secretmem_check" hold "$1" < /tmp/secret.in > /tmp/secret.out &
	holder=$!
	exec 9> /tmp/secret.in
	wait_for 60 grep -q held /tmp/secret.out || skip "no memfd_secret(2)"
	# shellcheck disable=SC2034
	secret_pfn=$(awk '{ print $2 }' /tmp/secret.out)
	# shellcheck disable=SC2034
	inner_pfn=$(awk '{ print $3 }' /tmp/secret.out)
}

release_secret() {
	exec 9>&-
	wait "$holder"
	rm -f /tmp/secret.in /tmp/secret.out
}

# Called at exit.
restore() {
	[ ! -d "$TEST" ] || rmmod unmapped_test
	[ ! -w "$PM_TEST" ] || echo none > "$PM_TEST"
	[ -z "${KEPT:-}" ] || echo "$KEPT" > "$KEEP"
	rm -f /tmp/secret.in /tmp/secret.out
}
