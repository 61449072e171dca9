#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# The unmapped page allocator: what it hands out cannot be read through the
# direct map and holds nothing of its last owner, it gives memory back, and the
# direct map gets back its large mappings.

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"
# shellcheck source=/dev/null
. "$(dirname "$0")/unmapped_lib.sh"

test_table() {
	expect "mode" "$(stat -c %a "$TABLE")" = 444
	expect "first line" "$(get "$TABLE" | head -n 1)" = "MAX_ORDER: 11"
	orders="    0     1     2     3     4     5     6     7     8     9    10 "
	expect "third line" "$(get "$TABLE" | sed -n 3p)" = "Order:    $orders"
	expect "rows" "$(get "$TABLE" | sed -n '4,6s/ .*//p' | tr '\n' ' ')" = \
		"Free: Cached: Released: "
	nodes=$(find /sys/devices/system/node -maxdepth 1 -name 'node[0-9]*' | wc -l)
	shown=$(get "$TABLE" | grep -c '^Node ')
	expect "nodes" "$shown" -ge 1 -a "$shown" -le "$nodes"
}

# 600 pages are two blocks. Where there are 2 MiB blocks nothing is split.
test_pages_are_not_in_the_direct_map() {
	load_test
	drop_cache
	echo 1 > /proc/sys/vm/compact_memory
	refills=$(vm unmapped_refill)
	cached=$(cell Cached 9)
	splits=$(vm direct_map_level2_splits)
	hold_blocks 600
	expect "pages that can be read" "$(get "$TEST/held_readable")" -eq 0
	expect "pages with content" "$(get "$TEST/dirty")" -eq 0
	wait_for 5 unmapped_is 4096 ||
		fail "Unmapped is $(mem Unmapped) kB, expected $((OTHERS + 4096)) kB"
	expect "refills" $(($(vm unmapped_refill) - refills)) -eq 2
	expect "cached" $(($(cell Cached 9) - cached)) -eq 2
	expect "splits" $(($(vm direct_map_level2_splits) - splits)) -eq 0
	put 0 "$TEST/held"
}

test_pages_given_back_are_mapped() {
	load_test
	drop_cache
	hold_blocks 600
	put 0 "$TEST/held"
	expect "free pages that can be read" "$(get "$TEST/freed_readable")" -eq 0
	# Else they are given back in the pieces that they came in.
	wait_for 5 free_pages_are 1024 || fail "$(free_pages) pages are free, expected 1024"
	released=$(cell Released 9)
	drop_cache
	expect "released pages that can be read" "$(get "$TEST/freed_readable")" -eq 600
	expect "released" $(($(cell Released 9) - released)) -eq 2
}

# Else they could be read there while they are outside the direct map.
test_kernel_image_maps_no_free_pages() {
	load_test
	expect "pages that can be read" "$(get "$TEST/image_readable")" -eq 0
}

test_every_order() {
	load_test
	for order in 0 1 2 3 4 5 6 7 8 9 10; do
		put "$order" "$TEST/order"
		error=$(error_of 3 "$TEST/held")
		[ -z "$error" ] || [ "$order" -eq 10 ] || fail "order $order: $error"
		expect "order $order: pages that can be read" \
			"$(get "$TEST/held_readable")" -eq 0
		expect "order $order: pages with content" "$(get "$TEST/dirty")" -eq 0
		put 0 "$TEST/held"
	done
	drop_cache
}

test_owners_see_nothing_of_each_other() {
	load_test
	for order in 0 3 9; do
		put "$order" "$TEST/order"
		for _ in 1 2 3; do
			put $((1024 >> order)) "$TEST/held"
			expect "order $order: blocks with content" \
				"$(get "$TEST/dirty")" -eq 0
			put 0 "$TEST/held"
		done
	done
}

# Whoever may not sleep gets what is cached, and has nothing unmapped.
test_atomic() {
	load_test
	drop_cache
	expect "allocation from an empty cache" -n "$(error_of 1 "$TEST/held_atomic")"
	unmapped_is 0 || fail "an atomic allocation refilled the cache"
	put 1 "$TEST/held"
	put 100 "$TEST/held_atomic"
	expect "pages that can be read" "$(get "$TEST/held_readable")" -eq 0
	put 0 "$TEST/held"
}

# Else an idle guest would keep it for good, and its host would not get it back.
test_what_nobody_wants_goes_back() {
	load_test
	drop_cache
	before=$(direct_map)
	hold_blocks 600
	put 0 "$TEST/held"
	wait_for 5 free_pages_are 1024 || fail "$(free_pages) pages are free, expected 1024"
	sleep 1
	expect "free pages that are to be kept" "$(free_pages)" -eq 1024
	put 200 "$KEEP"
	wait_for 30 free_pages_are 0 || fail "$(free_pages) free pages are kept"
	put 0 "$KEEP"
	wait_for 5 unmapped_is 0 || fail "Unmapped is $(mem Unmapped) kB, expected $OTHERS kB"
	wait_for 5 direct_map_is "$before" || fail "the direct map is $(direct_map), was $before"
	for bad in "" x -1 4294967296; do
		[ -n "$(error_of "$bad" "$KEEP")" ] || fail "keep_ms takes '$bad'"
	done
	expect "keep_ms after bad input" "$(get "$KEEP")" -eq 0
}

test_secretmem() {
	secret 4 3 4
}

# That pages are allocated ahead is not to be seen.
test_secretmem_accounting() { secret accounting; }

test_secretmem_is_unreachable() { secret unreachable; }

# A task that GUP-fast is too slow for: the file is gone, but the page still absent.
test_secretmem_is_unreachable_when_gone() {
	load_test
	[ -e "$TEST/truncate" ] || skip "no $TEST/truncate (CONFIG_KRETPROBES)"
	secret truncated
}

test_secretmem_ends_with_its_file() { secret beyond; }

# A page in use keeps its block from being released as a whole.
test_direct_map_is_restored() {
	drop_cache
	before=$(direct_map)
	hold_secret 3
	note "before: $before"
	note "in use: $(direct_map)"
	drop_cache 3072
	note "the rest released: $(direct_map)"
	release_secret
	drop_cache
	wait_for 5 direct_map_is "$before" ||
		fail "the direct map was $before, and is $(direct_map)"
}

# Free pages of the cache are available to all, without anyone being killed.
test_memory_pressure() {
	secret 160 1
	cached=$(mem Unmapped)
	[ "$cached" -ge 150000 ] || skip "only $cached kB are cached"
	kills=$(vm oom_kill)
	# The watermarks are kept free besides.
	target=$(($(mem MemFree) / 1024))
	"$HERE/memory_hog" "$target" 0 thp > /dev/null || fail "no $target MiB of memory"
	expect "processes killed" "$(vm oom_kill)" -eq "$kills"
	note "$cached kB were cached, $(mem Unmapped) kB are left"
	expect "cached after $target MiB were used" "$(mem Unmapped)" -lt "$cached"
}

test_loads_in_parallel() {
	"$HERE/secretmem_check" 8 5 3 > /tmp/secret.out &
	checker=$!
	while kill -0 "$checker" 2> /dev/null; do
		echo 2 > /proc/sys/vm/drop_caches
		sleep 0.1
	done
	wait "$checker" || fail "$(cat /tmp/secret.out)"
	rm -f /tmp/secret.out
}

on_node() {
	refresh
	awk '$1 == "nr_unmapped_alloc" { print $2 }' "/sys/devices/system/node/node$1/vmstat"
}
on_node_is() { [ "$(on_node "$1")" -eq "$2" ]; }

# free_on NODE: MiB.
free_on() {
	awk '$3 == "MemFree:" { print int($4 / 1024) }' "/sys/devices/system/node/node$1/meminfo"
}

# fill_node MIB: has a task take all of node 0 but so much, until empty_node.
fill_node() {
	: > /tmp/hog.out
	taskset "$mask" "$HERE/memory_hog" $(($(free_on 0) - $1)) 1000 thp > /tmp/hog.out &
	hog=$!
	wait_for 60 grep -q filled /tmp/hog.out
}

empty_node() {
	kill "$hog"
	wait "$hog"
	rm -f /tmp/hog.out
}

need_two_nodes() {
	[ -d /sys/devices/system/node/node1 ] || skip "there is one node"
	mask=$(cpu_of 0)
	[ -n "$mask" ] || skip "no CPU on node 0"
	drop_cache
	[ "$(free_on 1)" -ge 512 ] || skip "only $(free_on 1) MiB are free on node 1"
}

# When the node of a task is full, it gets whole blocks of another one.
test_full_node() {
	need_two_nodes
	filled=
	! fill_node 40 || filled=$(free_on 0)
	refills=$(vm unmapped_refill)
	taskset "$mask" "$HERE/secretmem_check" 128 1
	secrets=$?
	refills=$(($(vm unmapped_refill) - refills))
	empty_node
	[ -n "$filled" ] || skip "node 0 could not be filled"
	[ "$secrets" -ne "$KSFT_SKIP" ] || skip "no memfd_secret(2)"
	expect "result of a task on node 0" "$secrets" -eq 0
	note "$refills refills for 128 MiB, with $filled MiB free on node 0"
	expect "refills" "$refills" -lt 128
}

# ... unless it is bound to that node. This one counts as full while a tenth of it is
# free, so that nothing has to be killed.
SCALE=/proc/sys/vm/watermark_scale_factor
test_bound_to_a_full_node() {
	need_two_nodes
	[ -w $SCALE ] || skip "no $SCALE"
	scale=$(get $SCALE)
	filled=
	! fill_node 160 || filled=$(free_on 0)
	echo 1000 > $SCALE
	"$HERE/secretmem_check" bound 4 0
	bound=$?
	echo "$scale" > $SCALE
	empty_node
	[ -n "$filled" ] || skip "node 0 could not be filled"
	[ "$bound" -ne "$KSFT_SKIP" ] || skip "no memfd_secret(2) or set_mempolicy(2)"
	note "$filled MiB were free on node 0"
	expect "result of a task that is bound to node 0" "$bound" -eq 0
}

# Memory that goes offline takes nothing with it that is cached on its node.
test_memory_goes_offline() {
	load_test
	block=$(movable_blocks | head -n 1)
	[ -n "$block" ] || skip "no memory block in zone Movable"
	node=$(find "$block/" -maxdepth 1 -name 'node[0-9]*' | sed 's/.*node//')
	mask=$(cpu_of "$node")
	[ -n "$mask" ] || skip "no CPU on node $node"
	drop_cache
	before=$(on_node "$node")
	taskset "$mask" sh -c "echo 600 > $TEST/held" || fail "cannot hold 600 blocks"
	put 0 "$TEST/held"
	error=$(offline "$block")
	[ -z "$error" ] || fail "$block does not go offline: $error"
	wait_for 5 on_node_is "$node" "$before"
	left=$?
	put online_movable "$block/state"
	[ "$left" -eq 0 ] || fail "pages are still cached on node $node"
	expect "free pages that can be read" "$(get "$TEST/freed_readable")" -eq 600
}

# Its page tables go when the memory is removed: nothing that is still to be done to
# them may be left when it is offline.
test_offline_waits_for_collapses() {
	load_test
	[ -e "$TEST/slow_collapse" ] || skip "no $TEST/slow_collapse (CONFIG_KPROBES)"
	block=$(movable_blocks | head -n 1)
	[ -n "$block" ] || skip "no memory block in zone Movable"
	node=$(find "$block/" -maxdepth 1 -name 'node[0-9]*' | sed 's/.*node//')
	mask=$(cpu_of "$node")
	[ -n "$mask" ] || skip "no CPU on node $node"
	drop_cache
	wait_for 5 free_pages_are 0
	before=$(direct_map)
	put 4 "$TEST/order"
	taskset "$mask" sh -c "echo 40 > $TEST/held" || fail "cannot hold 40 blocks"
	put 1500 "$TEST/slow_collapse"
	# A part of a block is given back, and then the rest of it.
	echo 3 > /proc/sys/vm/drop_caches
	put 0 "$TEST/held"
	error=$(offline "$block")
	[ -z "$error" ] || fail "$block does not go offline: $error"
	after=$(direct_map)
	put 0 "$TEST/slow_collapse"
	put online_movable "$block/state"
	put 0 "$TEST/order"
	expect "the direct map when memory was offline" "$after" = "$before"
}

# vunmap() leaves nothing in a TLB, else the next owner could be seen.
test_nothing_is_stale() {
	load_test
	put 1 "$TEST/held"
	for _ in 1 2 3; do
		expect "pages that can be read after vunmap()" "$(get "$TEST/stale")" -eq 0
	done
	put 0 "$TEST/held"
}

# A task that is not frozen while an image may be made at any time gets no page, and
# does not fault again and again.
SNAPSHOT=/dev/snapshot
test_no_page_for_a_snapshot() {
	[ -c $SNAPSHOT ] || skip "no $SNAPSHOT (CONFIG_HIBERNATION_SNAPSHOT_DEV)"
	"$HERE/secretmem_check" partly 1 > /dev/null || skip "no memfd_secret(2)"
	load_test
	# memfd_secret(2) that was used a moment ago still counts as in use.
	wait_for 5 sh -c "exec 2> /dev/null < $SNAPSHOT" || skip "$SNAPSHOT cannot be opened"
	exec 7< $SNAPSHOT || skip "$SNAPSHOT cannot be opened"
	refills=$(vm unmapped_refill_fail)
	touched=$(timeout 10 "$HERE/secretmem_check" partly 100)
	result=$?
	error=$(error_of 1 "$TEST/held")
	exec 7<&-
	expect "result of secretmem_check (124: it did not end)" "$result" -eq 0
	expect "pages of memfd_secret(2)" "$touched" -eq 0
	expect "error" "$error" = "Device or resource busy"
	expect "blocks that were cleared in vain" \
		$(($(vm unmapped_refill_fail) - refills)) -eq 0
	expect "pages of memfd_secret(2) afterwards" \
		"$("$HERE/secretmem_check" partly 100)" -eq 100
}

# Debuggers read text and read-only data live.
test_kcore_has_text() {
	load_test
	[ -r /proc/kcore ] || skip "no /proc/kcore"
	get "$TEST/kcore" > /tmp/kcore.wanted
	while read -r address _; do
		"$HERE/kcore_read" "$address" || fail "cannot read $address of /proc/kcore"
	done < /tmp/kcore.wanted > /tmp/kcore.found
	awk '{ print $2 }' /tmp/kcore.wanted > /tmp/kcore.values
	found=$(tr '\n' ' ' < /tmp/kcore.found)
	expect "read-only data and text" "$found" = "$(tr '\n' ' ' < /tmp/kcore.values)"
	rm -f /tmp/kcore.*
}

# Charged to the memory control group of whoever allocates them.
test_accounting() {
	load_test
	CGROUP=/tmp/cgroup/unmapped
	mkdir -p /tmp/cgroup
	mount -t cgroup2 none /tmp/cgroup 2> /dev/null
	echo +memory > /tmp/cgroup/cgroup.subtree_control 2> /dev/null
	mkdir -p "$CGROUP"
	[ -e "$CGROUP/memory.max" ] || skip "no memory controller"
	put 1 "$TEST/account"
	before=$(get "$CGROUP/memory.current")
	sh -c "echo \$\$ > $CGROUP/cgroup.procs; echo 512 > $TEST/held"
	now=$(get "$CGROUP/memory.current")
	expect "charged bytes" $((now - before)) -ge 2097152
	expect "of other nodes and tasks" $((now - before)) -lt 4194304
	put 0 "$TEST/held"
	now=$(get "$CGROUP/memory.current")
	expect "charged bytes after the free" $((now - before)) -lt 1048576
	put 0 "$TEST/account"
	rmdir "$CGROUP"
	umount /tmp/cgroup
}

# What is allocated ahead keeps nobody from having what a control group may have:
# of 5120 pages some are page tables.
test_limit_of_a_group() {
	"$HERE/secretmem_check" partly 1 > /dev/null || skip "no memfd_secret(2)"
	group=/tmp/cgroup/limit
	mkdir -p /tmp/cgroup
	mount -t cgroup2 none /tmp/cgroup 2> /dev/null
	echo +memory > /tmp/cgroup/cgroup.subtree_control 2> /dev/null
	mkdir -p "$group"
	[ -e "$group/memory.max" ] || skip "no memory controller"
	put 20M "$group/memory.max"
	touched=$(sh -c "echo \$\$ > $group/cgroup.procs; exec $HERE/secretmem_check partly 6000")
	rmdir "$group"
	umount /tmp/cgroup
	note "$touched pages could be touched in a group of 20 MiB"
	expect "pages touched in a group of 5120" "$touched" -ge 4600
}

# Up to the test of the freezer: the image itself would need a swap device.
test_hibernation() {
	grep -q disk /sys/power/state 2> /dev/null || skip "no hibernation"
	[ -w "$PM_TEST" ] || skip "no $PM_TEST"
	broken=$(mem HardwareCorrupted)
	[ "${broken:-0}" -eq 0 ] || skip "$broken kB of memory are broken"
	load_test
	put 1 "$TEST/held"
	put freezer "$PM_TEST"
	error=$(error_of disk /sys/power/state)
	[ -n "$error" ] || fail "hibernated with a page in use"
	dmesg | tail -n 20 | grep -q "unmapped_alloc: cannot hibernate" ||
		fail "no message says why hibernation was refused ($error)"
	put 0 "$TEST/held"
	error=$(error_of disk /sys/power/state)
	put none "$PM_TEST"
	[ -z "$error" ] || fail "cannot hibernate with an empty cache: $error"
	put 1 "$TEST/held"
	put 0 "$TEST/held"
}

# Whoever changes where a task may allocate holds locks that it takes when it
# allocates: test_log has what lockdep says to that.
test_cpuset() {
	mkdir -p /tmp/cgroup
	mount -t cgroup2 none /tmp/cgroup 2> /dev/null
	if ! echo +cpuset > /tmp/cgroup/cgroup.subtree_control; then
		umount /tmp/cgroup
		skip "no cpuset controller"
	fi 2> /dev/null
	mkdir -p /tmp/cgroup/cpuset
	hold_secret 1
	# shellcheck disable=SC2154
	put "$holder" /tmp/cgroup/cpuset/cgroup.procs
	put "$(get /tmp/cgroup/cpuset.mems.effective)" /tmp/cgroup/cpuset/cpuset.mems
	release_secret
	rmdir /tmp/cgroup/cpuset
	umount /tmp/cgroup
}

# It reads all that the kernel image has as data, and all that was allocated.
KMEMLEAK=/sys/kernel/debug/kmemleak
test_kmemleak() {
	[ -w "$KMEMLEAK" ] || skip "no $KMEMLEAK (CONFIG_DEBUG_KMEMLEAK)"
	error=$(error_of scan "$KMEMLEAK")
	[ "$error" != "Operation not permitted" ] || skip "kmemleak is off"
	[ -z "$error" ] || fail "kmemleak: $error"
	hold_secret 3
	put scan "$KMEMLEAK"
	release_secret
	drop_cache
	put scan "$KMEMLEAK"
	leaks=$(get "$KMEMLEAK" | grep -E 'unmapped_|secretmem_|execmem_|jit_|freepage')
	[ -z "$leaks" ] || fail "leaks: $leaks"
}

test_log() { expect_clean_log; }

begin_unmapped
run cpuset table pages_are_not_in_the_direct_map pages_given_back_are_mapped \
	what_nobody_wants_goes_back \
	kernel_image_maps_no_free_pages every_order owners_see_nothing_of_each_other \
	atomic secretmem secretmem_accounting secretmem_is_unreachable \
	secretmem_is_unreachable_when_gone secretmem_ends_with_its_file \
	direct_map_is_restored memory_pressure full_node bound_to_a_full_node \
	loads_in_parallel memory_goes_offline offline_waits_for_collapses \
	nothing_is_stale no_page_for_a_snapshot kcore_has_text accounting limit_of_a_group \
	hibernation kmemleak log
