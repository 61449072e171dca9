#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Unaccepted memory: what /sys/kernel/mm/unaccepted/ says and takes.

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"

UNACCEPTED=/sys/kernel/mm/unaccepted
ZERO=/sys/kernel/mm/page_zero
BLOCK=$((2 << 20))

need_unaccepted() {
	[ -d "$UNACCEPTED" ] && return
	ktap_skip_all "no unaccepted memory, or the C implementation"
	exit "$KSFT_SKIP"
}

remaining() { get "$UNACCEPTED/remaining"; }
requested() { get "$UNACCEPTED/bytes_request"; }

# In the mode on_alloc what is unaccepted is in the free lists, and not counted.
need_blocks() {
	[ "$(get "$UNACCEPTED/mode")" != on_alloc ] || skip "memory is accepted as it is allocated"
}

need_remaining() {
	[ "$(remaining)" -ge $((64 << 20)) ] || skip "less than 64 MiB are unaccepted"
}

test_figures_agree() {
	need_blocks
	kib=$(awk '/^Unaccepted:/ { print $2 }' /proc/meminfo)
	left=$(remaining)
	# What is in flight is in one of them.
	expect "remaining, next to $kib kB in meminfo" "$left" -ge $((kib * 1024 - 16 * BLOCK))
	expect "remaining, next to $kib kB in meminfo" "$left" -le $((kib * 1024 + 16 * BLOCK))
	calls=$(($(get "$UNACCEPTED/calls_4k") * 4096 + $(get "$UNACCEPTED/calls_2m") * BLOCK))
	sum=0
	for why in boot allocation background request; do
		sum=$((sum + $(get "$UNACCEPTED/bytes_$why")))
	done
	expect "bytes accepted, next to $calls in calls" "$sum" -le $((calls + 16 * BLOCK))
	expect "bytes accepted, next to $calls in calls" "$sum" -ge $((calls - 16 * BLOCK))
	expect "calls in vain" "$(get "$UNACCEPTED/calls_in_vain")" -le $((calls / 4096 / 100 + 8))
}

test_bad_input_changes_nothing() {
	need_remaining
	before=$(requested)
	for bad in "" x -1 1x 0 16E 18446744073709551617 99999999999999999999999 1M1 1KM " "; do
		[ -n "$(error_of "$bad" "$UNACCEPTED/accept")" ] || fail "accept takes '$bad'"
	done
	expect "bytes accepted on request" "$(requested)" -eq "$before"
	share=$(get "$UNACCEPTED/background_share")
	for bad in 0 101 x; do
		[ -n "$(error_of "$bad" "$UNACCEPTED/background_share")" ] ||
			fail "background_share takes '$bad'"
	done
	expect "the share" "$(get "$UNACCEPTED/background_share")" -eq "$share"
}

test_limits_can_be_set() {
	for file in background_share background_rate; do
		old=$(get "$UNACCEPTED/$file")
		put 50 "$UNACCEPTED/$file"
		expect "$file" "$(get "$UNACCEPTED/$file")" -eq 50
		put "$old" "$UNACCEPTED/$file"
	done
}

test_a_number_of_bytes_is_accepted() {
	need_remaining
	left=$(remaining)
	put 32M "$UNACCEPTED/accept"
	expect "remaining" "$(remaining)" -le $((left - (32 << 20)))
}

zeroed() { awk '{ sum += $2 } END { printf "%.0f\n", sum }' "$ZERO/zeroed_bytes"; }

# The TDX module clears what it accepts; PVALIDATE does not.
test_what_tdx_accepts_is_zeroed() {
	[ -d "$ZERO" ] || skip "no page_zero"
	need_blocks
	need_remaining
	# From then on pages may be known to be zero.
	put 4096 "$ZERO/flush"
	before=$(zeroed)
	cleared=$(get "$ZERO/cleared_bytes")
	put 64M "$UNACCEPTED/accept"
	became=$(($(zeroed) - before))
	if grep -qw tdx_guest /proc/cpuinfo; then
		# The guards of blocks that boot has used may have been accepted before.
		expect "bytes that became zeroed" "$became" -ge $((48 << 20))
	else
		expect "bytes that became zeroed" "$became" -le "$BLOCK"
	fi
	expect "bytes cleared" $(($(get "$ZERO/cleared_bytes") - cleared)) -eq 0
	mib=$(awk '/^MemAvailable:/ { print int($2 / 1024 / 3) }' /proc/meminfo)
	result=$("$HERE/zero_check" pages $((mib * 256))) || fail "$result"
	# With CONFIG_PAGE_ZERO_VERIFY.
	[ ! -e "$ZERO/false_claims" ] ||
		expect "false claims" "$(get "$ZERO/false_claims")" -eq 0
}

# Memory that has to be accepted first is no reason to kill somebody in a cgroup that
# is within its limit.
test_a_cgroup_has_its_limit() {
	need_remaining
	group=/tmp/cgroup/unaccepted
	mkdir -p /tmp/cgroup
	mount -t cgroup2 none /tmp/cgroup 2> /dev/null || skip "no cgroups"
	grep -qw memory /tmp/cgroup/cgroup.controllers || skip "no memory controller"
	put +memory /tmp/cgroup/cgroup.subtree_control
	mkdir "$group" || fail "no cgroup can be made"
	put 64M "$group/memory.max"
	# shellcheck disable=SC2016
	sh -c 'echo 0 > "$1/cgroup.procs" && exec "$2" 48 0 lock' sh "$group" "$HERE/memory_hog" ||
		fail "48 MiB of 64 MiB cannot be had"
	expect "kills" "$(awk '$1 == "oom_kill" { print $2 }' "$group/memory.events")" -eq 0
	# shellcheck disable=SC2016
	sh -c 'echo 0 > "$1/cgroup.procs" && exec "$2" 80 0 lock' sh "$group" "$HERE/memory_hog" &&
		fail "80 MiB of 64 MiB can be had"
	rmdir "$group"
	umount /tmp/cgroup
}

# More than is accepted, in huge pages: the rest is accepted for it.
test_huge_pages_can_be_had() {
	need_remaining
	nr=/proc/sys/vm/nr_hugepages
	[ -w "$nr" ] || skip "no hugetlb"
	left=$(remaining)
	wanted=$(awk -v left="$left" \
		'/^MemFree:/ { print int(($2 * 1024 - left) / 2097152) + 32 }' /proc/meminfo)
	put "$wanted" "$nr"
	got=$(get "$nr")
	put 0 "$nr"
	note "$got of $wanted huge pages, remaining from $left to $(remaining)"
	expect "huge pages" "$got" -ge $((wanted * 9 / 10))
	expect "remaining" "$(remaining)" -lt "$left"
}

# It ends with the blocks that are under way then. What is not asked for is left for
# the tests that follow, where all is accepted before there can be a signal.
test_a_signal_ends_a_request() {
	left=$((128 << 20))
	[ "$(remaining)" -ge $((4 * left)) ] || skip "less than 512 MiB are unaccepted"
	sh -c "echo $(($(remaining) - left)) > $UNACCEPTED/accept" &
	sleep 0.05
	[ "$(remaining)" -ge $((3 * left)) ] || skip "too fast for a signal"
	kill -9 $!
	wait $!
	expect "remaining after a signal" "$(remaining)" -gt $((left + 8 * BLOCK))
}

test_allocations_stall_for_a_while() {
	need_remaining
	mib=$(awk '/^MemAvailable:/ { print int($2 / 1024 * 0.8) }' /proc/meminfo)
	"$HERE/memory_hog" "$mib" 0 lock || fail "cannot take $mib MiB"
	expect "the longest stall" "$(get "$UNACCEPTED/longest_stall_ns")" -gt 0
	awk '{ sum += $2 } END { exit !sum }' "$UNACCEPTED/stalls" || fail "no stall was counted"
}

# The hooks are off then.
test_all_is_accepted() {
	put all "$UNACCEPTED/accept"
	expect "remaining" "$(remaining)" -eq 0
	expect "meminfo" "$(awk '/^Unaccepted:/ { print $2 }' /proc/meminfo)" -eq 0
	dmesg | grep -q 'unaccepted_memory: all memory that is online has been accepted' ||
		wait_for 5 sh -c "dmesg | grep -q 'all memory that is online has been accepted'" ||
		fail "the kernel does not say that all has been accepted"
	put all "$UNACCEPTED/accept"
	mib=$(awk '/^MemAvailable:/ { print int($2 / 1024 * 0.8) }' /proc/meminfo)
	"$HERE/memory_hog" "$mib" 0 lock || fail "cannot take $mib MiB"
	expect_clean_log
}

begin
need_unaccepted
run figures_agree bad_input_changes_nothing limits_can_be_set \
	a_number_of_bytes_is_accepted what_tdx_accepts_is_zeroed \
	a_cgroup_has_its_limit huge_pages_can_be_had a_signal_ends_a_request \
	allocations_stall_for_a_while all_is_accepted
