#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# /sys/kernel/mm/page_zero: every page that is handed out is zero, whatever
# happens meanwhile, and the zeroer does what it is told. With
# CONFIG_PAGE_ZERO_VERIFY the kernel looks, too.

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"

ZERO=/sys/kernel/mm/page_zero
HUGETLB=/sys/kernel/mm/hugepages/hugepages-2048kB
CPUS=$(grep -c ^processor /proc/cpuinfo)
MOST_MIB=256
SECONDS_EACH=4
SECONDS_MIXED=8
BLOCKS=3
is_debug_kernel && MOST_MIB=64 SECONDS_EACH=1 SECONDS_MIXED=3 BLOCKS=1

of_order() { awk -v field=$(($2 + 1)) '{ print $field }' "$ZERO/$1"; }
# What a load works on, and what is soiled: a third of the memory, and not so much
# that it only takes longer.
load_mib() {
	awk -v most="$MOST_MIB" '/MemAvailable/ { mib = int($2 / 1024 / 3);
		print mib < most ? mib : most }' /proc/meminfo
}
zeroed() { awk '{ sum += $2 } END { printf "%.0f\n", sum }' "$ZERO/zeroed_bytes"; }

DEFAULTS="delay_ms:250 min_order:0 low_percent:25 high_percent:50 cpu_percent:50 rate_mib:2048"

# Everything at once, and for ever.
full_tilt() {
	put 1 "$ZERO/delay_ms"
	put 0 "$ZERO/min_order"
	put 100 "$ZERO/high_percent"
	put 100 "$ZERO/low_percent"
	put 100 "$ZERO/cpu_percent"
	put 0 "$ZERO/rate_mib"
	put 1 "$ZERO/enabled"
}

reset() {
	put 0 "$ZERO/enabled"
	# In between, low must not exceed high.
	put 0 "$ZERO/low_percent"
	for setting in $DEFAULTS; do
		[ "${setting%%:*}" = low_percent ] || put "${setting#*:}" "$ZERO/${setting%%:*}"
	done
	put 25 "$ZERO/low_percent"
}

# So much memory becomes dirty, and is free again.
soil() {
	mib=$(load_mib)
	"$HERE/zero_check" pages $((mib * 256)) > /dev/null ||
		fail "a page of $mib MiB was not zero"
}

# check KIND [MIB [SECONDS]]: memory that programs get is zero.
check() {
	result=$("$HERE/zero_check" "$1" "${2:-$(load_mib)}" "${3:-$SECONDS_EACH}" "$CPUS") ||
		fail "$1: $result"
	note "$1: $result"
}

# count_hits ARGUMENTS...: how many of the single pages that zero_check takes with them
# were zero, and how many were not.
count_hits() {
	hits=$(of_order hits 0)
	misses=$(of_order misses 0)
	"$HERE/zero_check" "$@" > /dev/null || fail "zero_check $*"
	hits=$(($(of_order hits 0) - hits))
	misses=$(($(of_order misses 0) - misses))
	note "$hits hits, $misses misses"
}

# small_pages: how many are free in small blocks. They are used first, zeroed or not.
small_pages() { echo $(($(free_bytes 0 9) / 4096)); }

# under_zeroer KIND: with the zeroer at full tilt, which has to be of use.
under_zeroer() {
	full_tilt
	used=$(get "$ZERO/used_bytes")
	check "$1"
	expect "bytes that did not have to be cleared" "$(get "$ZERO/used_bytes")" -gt "$used"
	reset
}

test_defaults() {
	for setting in $DEFAULTS; do
		expect "${setting%%:*}" "$(get "$ZERO/${setting%%:*}")" -eq "${setting#*:}"
	done
}

refuses() {
	before=$(get "$ZERO/$1" 2> /dev/null)
	error=$(error_of "$2" "$ZERO/$1")
	[ -n "$error" ] || fail "'$2' written to $1 was taken"
	[ "$1" = flush ] || expect "$1 after writing '$2'" "$(get "$ZERO/$1")" = "$before"
}

test_bounds() {
	for file in delay_ms min_order low_percent high_percent cpu_percent rate_mib; do
		refuses $file x
	done
	# One function reads them all.
	for value in -1 1x 4294967296 ""; do
		refuses rate_mib "$value"
	done
	refuses delay_ms 0
	refuses min_order 11
	refuses high_percent 101
	refuses high_percent 24
	refuses low_percent 51
	refuses cpu_percent 0
	refuses cpu_percent 101
	refuses enabled maybe
	refuses flush x
	refuses flush 1x
	refuses flush ""
	refuses flush -1
	for value in 18446744073709551616 16777216T 18014398509481984K 16E 1e3; do
		refuses flush $value
	done
}

test_flush() {
	before=$(zeroed)
	cleared=$(get "$ZERO/cleared_bytes")
	put 64M "$ZERO/flush"
	expect "bytes cleared" $(($(get "$ZERO/cleared_bytes") - cleared)) -ge $((64 << 20))
	expect "bytes zeroed" $(($(zeroed) - before)) -ge $((60 << 20))
	put 0 "$ZERO/flush"
}

# All that a u64 can say: it is no small number.
test_flush_most() {
	soil
	cleared=$(get "$ZERO/cleared_bytes")
	put 18446744073709551615 "$ZERO/flush"
	expect "bytes cleared" $(($(get "$ZERO/cleared_bytes") - cleared)) -ge $((32 << 20))
}

# More than there is: ends when all that is free is zeroed.
test_flush_all() {
	put 1T "$ZERO/flush"
	free=$(awk '/^MemFree:/ { print $2 * 1024 }' /proc/meminfo)
	note "$(zeroed) of $free bytes zeroed"
	expect "part that is zeroed" $(($(zeroed) * 100 / free)) -ge 90
	# Nobody has to clear it.
	count_hits time small 64
	expect "hits" "$hits" -ge 14000
}

# What is zeroed is used before what was freed since, if that became large blocks.
test_zeroed_first() {
	keep_off_pcp_lists
	put 1T "$ZERO/flush"
	soil
	count_hits pages $(($(small_pages) + 8192))
	put "$OLD_PCP" "$PCP"
	expect "hits" "$hits" -ge 7372
}

test_flush_huge() {
	put 1T "$ZERO/flush"
	hits=$(of_order hits 9)
	"$HERE/zero_check" time huge 64 > /dev/null || fail "cannot lock 64 MiB"
	expect "huge pages that were zero" $(($(of_order hits 9) - hits)) -ge 30
}

# One page of 32 was used since: the kernel clears that, and not all of a huge page.
test_nearly_zeroed() {
	is_debug_kernel && skip "too slow to clear all memory in pieces"
	trap defragment EXIT
	fragment 0 || skip "memory cannot be fragmented"
	put 1T "$ZERO/flush"
	drop_all
	hits=$(of_order hits 9)
	"$HERE/zero_check" time huge 64 > /dev/null || fail "cannot lock 64 MiB"
	expect "huge pages that were zero but for a part" $(($(of_order hits 9) - hits)) -ge 30
}

test_small() { under_zeroer small; }
test_pages() { under_zeroer pages; }
test_fork() { under_zeroer fork; }
test_huge() { under_zeroer huge; }

MTHP=/sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled
test_mthp() {
	[ -w $MTHP ] || skip "no mTHP"
	old=$(sed 's/.*\[\(.*\)\].*/\1/' $MTHP)
	pmd=/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled
	old_pmd=$(sed 's/.*\[\(.*\)\].*/\1/' $pmd)
	echo never > $pmd
	echo madvise > $MTHP
	keep_off_pcp_lists
	put 1T "$ZERO/flush"
	before=$(of_order hits 4)
	"$HERE/zero_check" time huge 64 > /dev/null || fail "cannot lock 64 MiB"
	after=$(of_order hits 4)
	full_tilt
	check huge
	echo "$old" > $MTHP
	echo "$old_pmd" > $pmd
	reset
	expect "folios of 64 KiB that were zero" $((after - before)) -gt 0
}

test_shared() { under_zeroer shared; }

SHMEM=/sys/kernel/mm/transparent_hugepage/shmem_enabled
test_shared_huge() {
	[ -w $SHMEM ] || skip "no huge pages for shmem"
	old=$(sed 's/.*\[\(.*\)\].*/\1/' $SHMEM)
	echo advise > $SHMEM
	under_zeroer shared
	echo "$old" > $SHMEM
}

# Pages go to the pool and back from it without passing the allocator.
test_hugetlb() {
	[ -w $HUGETLB/nr_hugepages ] || skip "no hugetlb"
	full_tilt
	sleep 1
	for round in 1 2 3; do
		echo 16 > $HUGETLB/nr_hugepages
		check hugetlb 32 1
		"$HERE/zero_check" hugetlb 32 1 1 > /dev/null || fail "round $round"
		echo 0 > $HUGETLB/nr_hugepages
	done
	reset
}

# A pool whose pages were zero when they came needs no clearing, once.
test_hugetlb_fresh() {
	[ -w $HUGETLB/nr_hugepages ] || skip "no hugetlb"
	put 1T "$ZERO/flush"
	echo 16 > $HUGETLB/nr_hugepages
	expect "pages of the pool" "$(get $HUGETLB/nr_hugepages)" -eq 16
	hits=$(of_order hits 9)
	"$HERE/zero_check" time hugetlb 32 > /dev/null || fail "cannot lock 32 MiB"
	first=$(($(of_order hits 9) - hits))
	"$HERE/zero_check" time hugetlb 32 > /dev/null || fail "cannot lock 32 MiB"
	second=$(($(of_order hits 9) - hits - first))
	echo 0 > $HUGETLB/nr_hugepages
	# What was on the lists of the CPUs was dirty.
	expect "pages that were zero" $first -ge 1
	expect "used pages that passed for zero" $second -eq 0
}

# The flag has a name of its own.
test_flags() {
	[ -r /proc/kpageflags ] || skip "no CONFIG_PROC_PAGE_MONITOR"
	put 1T "$ZERO/flush"
	pfns=$("$HERE/zero_check" zeroed 20) || fail "$pfns"
}

# What CPUs keep on their lists, and do not use, is cleared, too: without it, those
# pages would be the first ones to be used.
test_idle_lists() {
	full_tilt
	put 250 "$ZERO/delay_ms"
	soil
	# A slow machine takes more than the idle seconds that it is about.
	for second in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do
		before=$(zeroed)
		sleep 1
		[ "$second" -lt 2 ] || [ $(($(zeroed) - before)) -ge $((4 << 20)) ] || break
	done
	sleep 1
	count_hits pages 8192
	reset
	expect "hits per cent" $((hits * 100 / (hits + misses))) -ge 90
}

# Huge pages of a pool are zeroed in it: by a trigger, and by the zeroer.
test_pool() {
	[ -w $HUGETLB/zeroed_hugepages ] || skip "no hugetlb"
	soil
	echo 16 > $HUGETLB/nr_hugepages
	expect "pages of the pool" "$(get $HUGETLB/nr_hugepages)" -eq 16
	for value in -1 x ""; do
		[ -n "$(error_of "$value" $HUGETLB/zeroed_hugepages)" ] || fail "'$value' was taken"
	done
	put 4 $HUGETLB/zeroed_hugepages
	expect "pages that are zero" "$(get $HUGETLB/zeroed_hugepages)" -ge 4
	put 100 $HUGETLB/zeroed_hugepages
	expect "pages that are zero" "$(get $HUGETLB/zeroed_hugepages)" -eq 16
	sum=0
	for node in /sys/devices/system/node/node*/hugepages/hugepages-2048kB; do
		sum=$((sum + $(get "$node/zeroed_hugepages")))
	done
	expect "pages that are zero, of all nodes" $sum -eq 16
	hits=$(of_order hits 9)
	"$HERE/zero_check" time hugetlb 32 > /dev/null || fail "cannot lock 32 MiB"
	expect "pages that need not be cleared" $(($(of_order hits 9) - hits)) -eq 16
	# They were used.
	expect "pages that are zero" "$(get $HUGETLB/zeroed_hugepages)" -eq 0
	"$HERE/zero_check" hugetlb 32 1 1 > /dev/null || fail "a page was not zero"
	full_tilt
	wait_for 20 pool_is_zeroed 16 || fail "only $(get $HUGETLB/zeroed_hugepages) of 16 zeroed"
	check hugetlb 32 2
	wait_for 20 pool_is_zeroed 16 || fail "only $(get $HUGETLB/zeroed_hugepages) of 16 zeroed"
	echo 5 > $HUGETLB/nr_hugepages
	expect "pages that are zero" "$(get $HUGETLB/zeroed_hugepages)" -le 5
	check hugetlb 10 1
	reset
	echo 0 > $HUGETLB/nr_hugepages
	expect "pages that are zero" "$(get $HUGETLB/zeroed_hugepages)" -eq 0
}
pool_is_zeroed() { [ "$(get $HUGETLB/zeroed_hugepages)" -eq "$1" ]; }

test_toggled() {
	"$HERE/zero_check" mixed "$(load_mib)" $SECONDS_MIXED "$CPUS" > /tmp/zero_check.out &
	LOAD=$!
	full_tilt
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		put 0 "$ZERO/enabled"
		put 1 "$ZERO/enabled"
		sleep 0.2
	done
	wait $LOAD || fail "$(cat /tmp/zero_check.out)"
	LOAD=
	note "$(cat /tmp/zero_check.out)"
	reset
}

# Compaction, contiguous allocation and memory pressure move what is in use.
test_moved() {
	"$HERE/zero_check" mixed "$(load_mib)" $SECONDS_MIXED "$CPUS" > /tmp/zero_check.out &
	LOAD=$!
	full_tilt
	while kill -0 $LOAD 2> /dev/null; do
		[ ! -w /proc/sys/vm/compact_memory ] || echo 1 > /proc/sys/vm/compact_memory
		[ ! -w $HUGETLB/nr_hugepages ] || {
			echo 64 > $HUGETLB/nr_hugepages
			echo 0 > $HUGETLB/nr_hugepages
		}
		echo 3 > /proc/sys/vm/drop_caches
	done
	wait $LOAD || fail "$(cat /tmp/zero_check.out)"
	LOAD=
	note "$(cat /tmp/zero_check.out)"
	reset
}

# Removes memory and adds it again. lsmem's blocks that can go are tried in turn.
test_hotplug() {
	blocks=
	for block in "$MEMORY"/memory*; do
		[ "$(cat "$block/removable" 2> /dev/null)" = 1 ] && blocks="$block $blocks"
	done
	[ -n "$blocks" ] || skip "no memory that can be removed"
	full_tilt
	sleep 1
	gone=0
	for block in $blocks; do
		[ $gone -lt $BLOCKS ] || break
		before=$(zeroed)
		error=$(offline "$block")
		[ -z "$error" ] || {
			note "$block does not go offline: $error"
			continue
		}
		gone=$((gone + 1))
		check mixed 64 1
		echo online > "$block/state" || fail "cannot have $block back"
		check mixed 64 1
	done
	reset
	[ $gone -gt 0 ] || skip "no memory could be removed"
	note "$gone blocks were removed and added"
	# No more can be zeroed than is free.
	free=$(awk '/^MemFree:/ { print $2 * 1024 }' /proc/meminfo)
	expect "bytes zeroed" "$(zeroed)" -le $((free + (64 << 20)))
}

# Broken pages lose what is known of them, and may come back.
test_hwpoison() {
	inject=/sys/kernel/debug/hwpoison
	mount_debugfs
	[ -w $inject/corrupt-pfn ] || skip "no CONFIG_HWPOISON_INJECT"
	put 1T "$ZERO/flush"
	# Free pages that are zeroed, by their flags.
	pfns=$("$HERE/zero_check" zeroed 20) || fail "no zeroed page found: $pfns"
	full_tilt
	for pfn in $pfns; do
		echo "$pfn" > $inject/corrupt-pfn 2> /dev/null
	done
	check mixed 64 1
	for pfn in $pfns; do
		echo "$pfn" > $inject/unpoison-pfn 2> /dev/null
	done
	check mixed 64 1
	reset
}

# At most so much of a CPU, and so many MiB in a second.
test_limits() {
	put 0 "$ZERO/enabled"
	soil
	full_tilt
	put 0 "$ZERO/enabled"
	soil
	put 20 "$ZERO/rate_mib"
	cleared=$(get "$ZERO/cleared_bytes")
	put 1 "$ZERO/enabled"
	sleep 5
	put 0 "$ZERO/enabled"
	cleared=$((($(get "$ZERO/cleared_bytes") - cleared) >> 20))
	reset
	note "$cleared MiB in 5 s, of $CPUS CPUs"
	nodes=$(wc -l < "$ZERO/zeroed_bytes")
	expect "MiB cleared" "$cleared" -le $((130 * nodes))
	expect "MiB cleared" "$cleared" -ge 20
}

percent_zeroed() {
	echo $(($(zeroed) * 100 / $(awk '/^MemTotal:/ { print $2 * 1024 }' /proc/meminfo)))
}
is_zeroed() { [ "$(percent_zeroed)" -ge "$1" ]; }

# It begins below the low watermark, and ends at the high one.
test_watermarks() {
	soil
	before=$(percent_zeroed)
	put 0 "$ZERO/low_percent"
	put 10 "$ZERO/low_percent"
	put 20 "$ZERO/high_percent"
	put 100 "$ZERO/cpu_percent"
	put 0 "$ZERO/rate_mib"
	put 1 "$ZERO/enabled"
	wait_for 60 is_zeroed 18 || fail "only $(percent_zeroed) % zeroed"
	sleep 2
	percent=$(percent_zeroed)
	reset
	note "$before % zeroed, then $percent %"
	# What was zeroed before stays so, and watermarks are those of a node: of
	# two, one may have got a fifth, which is a tenth of all.
	expect "percent zeroed" "$percent" -le $((before > 14 ? before + 11 : 25))
}

# The content of free pages is not in the image: what was zero may not be.
test_hibernation() {
	grep -qw disk /sys/power/state 2> /dev/null || skip "no hibernation"
	grep -qw test_resume /sys/power/disk || skip "no test_resume"
	[ "$(wc -l < /proc/swaps)" -gt 1 ] || skip "no swap"
	full_tilt
	sleep 1
	echo test_resume > /sys/power/disk
	echo disk > /sys/power/state || skip "the kernel does not hibernate here"
	check mixed
	reset
}

# The threads are frozen with everything else.
test_freezer() {
	[ -w /sys/power/pm_test ] || skip "no CONFIG_PM_DEBUG"
	full_tilt
	echo freezer > /sys/power/pm_test
	echo mem > /sys/power/state || fail "cannot freeze"
	echo none > /sys/power/pm_test
	check mixed 64 1
	reset
}

# Whether for 2 s next to nothing is reported
at_rest() {
	was=$(get "$SYSFS/bytes_reported")
	sleep 2
	[ $(($(get "$SYSFS/bytes_reported") - was)) -lt $((4 << 20)) ]
}
none_left() { [ "$(zeroed)" -lt $((64 << 20)) ]; }

# What is zeroed is not reported, what is reported is not zeroed, and both come to
# rest: each would undo what the other did.
test_reporting() {
	[ -w "$SYSFS/enabled" ] || skip "no CONFIG_PAGE_REPORTING_RUST"
	[ -n "$(balloons)" ] || skip "no virtio balloon"
	old=$(get "$SYSFS/delay_ms")
	put 100 "$SYSFS/delay_ms"
	full_tilt
	put 20 "$ZERO/low_percent"
	put 20 "$ZERO/high_percent"
	soil
	put 1 "$SYSFS/enabled"
	wait_for 6 at_rest || fail "reporting does not come to rest"
	percent=$(percent_zeroed)
	cleared=$(get "$ZERO/cleared_bytes")
	sleep 5
	cleared=$(($(get "$ZERO/cleared_bytes") - cleared))
	note "$percent % zeroed, $((cleared >> 20)) MiB cleared at rest"
	expect "percent kept zeroed" "$percent" -le 25
	expect "bytes cleared, at rest" $cleared -lt $((64 << 20))
	# Without a reserve the host gets it all.
	put 0 "$ZERO/enabled"
	put 0 "$ZERO/low_percent"
	put 0 "$ZERO/high_percent"
	wait_for 60 none_left || fail "$(zeroed) bytes zeroed, and not reported"
	put 0 "$SYSFS/enabled"
	put "$old" "$SYSFS/delay_ms"
	reset
}

# One page that was reported does not keep the others of its block from being zeroed.
test_reported_in_part() {
	[ -w "$SYSFS/enabled" ] || skip "no CONFIG_PAGE_REPORTING_RUST"
	[ -n "$(balloons)" ] || skip "no virtio balloon"
	keep_off_pcp_lists
	old=$(get "$SYSFS/delay_ms")
	old_order=$(get "$SYSFS/order")
	put 0 "$ZERO/low_percent"
	put 0 "$ZERO/high_percent"
	put 0 "$SYSFS/order"
	put 100 "$SYSFS/delay_ms"
	put 1 "$SYSFS/enabled"
	mkfifo /tmp/halves
	"$HERE/zero_check" halves 64 < /tmp/halves > /tmp/halves.out &
	LOAD=$!
	exec 3> /tmp/halves
	wait_for 60 grep -q half /tmp/halves.out || fail "$(cat /tmp/halves.out)"
	wait_for 6 at_rest || fail "reporting does not come to rest"
	# What comes now is not reported.
	put 3600000 "$SYSFS/delay_ms"
	before=$(zeroed)
	echo >&3
	wait $LOAD || fail "$(cat /tmp/halves.out)"
	LOAD=
	exec 3>&-
	put 1T "$ZERO/flush"
	after=$(zeroed)
	put 0 "$SYSFS/enabled"
	put "$old" "$SYSFS/delay_ms"
	[ "$old_order" -lt 0 ] || put "$old_order" "$SYSFS/order"
	reset
	note "$(((after - before) >> 20)) of 32 MiB zeroed"
	expect "bytes zeroed" $((after - before)) -ge $((24 << 20))
}

test_claims() {
	[ -r "$ZERO/false_claims" ] || skip "no CONFIG_PAGE_ZERO_VERIFY"
	expect "false claims" "$(get "$ZERO/false_claims")" -eq 0
}

test_log() { expect_clean_log; }

begin
[ -d "$ZERO" ] || { ktap_skip_all "kernel without CONFIG_PAGE_ZERO"; exit "$KSFT_SKIP"; }
# All but one test are about memory that no host takes.
[ ! -w "$SYSFS/enabled" ] || put 0 "$SYSFS/enabled"
run defaults bounds flush flush_most flush_all zeroed_first flush_huge nearly_zeroed \
	flags idle_lists small pages fork huge mthp shared shared_huge hugetlb hugetlb_fresh pool \
	toggled moved hotplug hwpoison limits watermarks hibernation freezer reporting \
	reported_in_part claims log
