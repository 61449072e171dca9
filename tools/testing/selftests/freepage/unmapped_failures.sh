#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# The unmapped page allocator when things go wrong: memory that breaks, leaves
# or runs out, allocations that fail, and all at once.

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"
# shellcheck source=/dev/null
. "$(dirname "$0")/unmapped_lib.sh"

OFFLINE=$MEMORY/hard_offline_page
UNPOISON=/sys/kernel/debug/hwpoison/unpoison-pfn
COMPACT=/proc/sys/vm/compact_memory

need_broken_memory() {
	load_test
	[ -w "$OFFLINE" ] || skip "no $OFFLINE (CONFIG_MEMORY_FAILURE)"
	# What earlier tests broke stays away.
	count_others
	drop_cache
}

# More than were freed if there was no block of 2 MiB.
enough_are_free() { [ "$(free_pages)" -ge "$1" ]; }
reclaimable_is() { [ "$(vm nr_kernel_misc_reclaimable)" -eq "$1" ]; }

# break_page PFN: as if the hardware had said so. An error says that the page
# could not be freed, which is so for all but those of user space.
break_page() { error_of $(($1 * 4096)) "$OFFLINE" > /dev/null; }

# broken FILE: how many blocks of the list have a broken page.
broken() { get "$TEST/$1" | grep -c broken; }

pfn_readable() {
	put "$1" "$TEST/pfn"
	get "$TEST/pfn_readable"
}

# A block but for one page can be used and given back; the page stays out.
test_broken_while_cached() {
	need_broken_memory
	hold_blocks 512
	pfn=$(get "$TEST/held_blocks" | awk 'NR == 200 { print $1 }')
	put 0 "$TEST/held"
	wait_for 5 enough_are_free 512 || fail "$(free_pages) pages are free after 512 were freed"
	refills=$(vm unmapped_refill)
	break_page "$pfn"
	for _ in 1 2; do
		hold_blocks 511
		expect "broken pages that were handed out" "$(broken held_blocks)" -eq 0
		expect "refills" "$(vm unmapped_refill)" -eq "$refills"
		expect "pages that can be read" "$(get "$TEST/held_readable")" -eq 0
		put 0 "$TEST/held"
	done
	drop_cache 4
	expect "released pages that can be read" "$(get "$TEST/freed_readable")" -eq 511
	expect "the broken page can be read" "$(pfn_readable "$pfn")" -eq 0
}

# As before, but nobody asks for the page before it would be given back.
test_broken_and_released() {
	need_broken_memory
	reclaimable=$(vm nr_kernel_misc_reclaimable)
	hold_blocks 512
	pfn=$(get "$TEST/held_blocks" | awk 'NR == 77 { print $1 }')
	put 0 "$TEST/held"
	wait_for 5 enough_are_free 512 || fail "$(free_pages) pages are free after 512 were freed"
	break_page "$pfn"
	drop_cache 4
	expect "released pages that can be read" "$(get "$TEST/freed_readable")" -eq 511
	expect "the broken page can be read" "$(pfn_readable "$pfn")" -eq 0
	wait_for 5 reclaimable_is "$reclaimable" ||
		fail "$(vm nr_kernel_misc_reclaimable) pages are reclaimable, expected $reclaimable"
}

# One page of eight breaks while somebody has them.
test_broken_while_held() {
	need_broken_memory
	put 3 "$TEST/order"
	hold_blocks 64
	pfn=$(get "$TEST/held_blocks" | awk 'NR == 20 { print $1 + 5 }')
	break_page "$pfn"
	expect "blocks with a broken page" "$(broken held_blocks)" -eq 1
	put 0 "$TEST/held"
	hold_blocks 63
	expect "broken pages that were handed out" "$(broken held_blocks)" -eq 0
	expect "blocks with content" "$(get "$TEST/dirty")" -eq 0
	put 0 "$TEST/held"
	put 0 "$TEST/order"
	drop_cache 4
	expect "the broken page can be read" "$(pfn_readable "$pfn")" -eq 0
}

# break_secret first|inner: the page leaves its owner at once, and is nobody's. If it
# turns out that it was not broken after all it is the cache's again, and the direct
# map as before.
break_secret() {
	need_broken_memory
	before=$(direct_map)
	hold_secret 1
	# shellcheck disable=SC2154
	[ "$1" = first ] && pfn=$secret_pfn || pfn=$inner_pfn
	[ "$pfn" -gt 0 ] || skip "page frame numbers are not shown"
	break_page "$pfn"
	release_secret
	drop_cache 4
	expect "the broken page can be read" "$(pfn_readable "$pfn")" -eq 0
	hold_blocks 600
	expect "broken pages that were handed out" "$(broken held_blocks)" -eq 0
	put 0 "$TEST/held"
	drop_cache 4
	[ -w "$UNPOISON" ] || skip "no $UNPOISON (CONFIG_HWPOISON_INJECT)"
	put "$pfn" "$UNPOISON"
	drop_cache
	expect "the page can be read" "$(pfn_readable "$pfn")" -eq 1
	wait_for 5 direct_map_is "$before" ||
		fail "the direct map was $before, and is $(direct_map)"
}

test_broken_secret() { break_secret first; }

# One of 64 KiB, which are split.
test_broken_secret_of_many() { break_secret inner; }

# Pages of the script itself, too, are allocated while allocations fail.
arm_faults() {
	[ -e /proc/self/fail-nth ] || skip "no fault injection (CONFIG_FAULT_INJECTION)"
	for fault in failslab fail_page_alloc; do
		dir=/sys/kernel/debug/$fault
		[ -d "$dir" ] || skip "no $dir"
		echo Y > "$dir/task-filter"
		echo "$1" > "$dir/probability"
		echo 1 > "$dir/interval"
		echo -1 > "$dir/times"
		echo 0 > "$dir/space"
		echo 0 > "$dir/verbose"
		[ ! -e "$dir/ignore-gfp-wait" ] || echo N > "$dir/ignore-gfp-wait"
		[ ! -e "$dir/min-order" ] || echo 0 > "$dir/min-order"
	done
}

disarm_faults() {
	for fault in failslab fail_page_alloc; do
		dir=/sys/kernel/debug/$fault
		[ ! -d "$dir" ] || echo 0 > "$dir/probability"
	done
}

# Whatever was got is whole, and all can be given back.
expect_nothing_half_done() {
	expect "$1: pages that can be read" "$(get "$TEST/held_readable")" -eq 0
	expect "$1: pages with content" "$(get "$TEST/dirty")" -eq 0
	put 0 "$TEST/held"
	drop_cache
	pages=$(get "$TEST/freed_blocks" | awk '
		{
			size = 1
			for (i = 0; i < $2; i++)
				size *= 2
			sum += size
		}
		END { print sum + 0 }')
	expect "$1: released pages that can be read" "$(get "$TEST/freed_readable")" -eq "$pages"
}

# The first, the second, ... allocation of a refill fails, until none is left.
test_each_allocation_fails() {
	load_test
	arm_faults 0
	drop_cache
	before=$(direct_map)
	for order in 0 4 9; do
		put "$order" "$TEST/order"
		nth=1
		while [ "$nth" -lt 100 ]; do
			fails=$(vm unmapped_refill_fail)
			put "$nth" "$TEST/fail_nth"
			error=$(error_of 1 "$TEST/held")
			unused=$(get "$TEST/fail_nth")
			put 0 "$TEST/fail_nth"
			note "order $order, allocation $nth fails: ${error:-$(mem Unmapped) kB}"
			[ -z "$error" ] ||
				expect "failed refills" "$(vm unmapped_refill_fail)" -gt "$fails"
			expect_nothing_half_done "order $order, failure $nth"
			[ "$unused" -eq 0 ] || break
			nth=$((nth + 1))
		done
		expect "failures of order $order" "$nth" -gt 3
		[ -z "$error" ] || fail "order $order: $error, but nothing failed"
	done
	wait_for 5 direct_map_is "$before" ||
		fail "the direct map was $before, and is $(direct_map)"
}

# Many fail, in whatever combination.
test_allocations_fail_at_random() {
	load_test
	arm_faults 0
	drop_cache
	before=$(direct_map)
	fails=$(vm unmapped_refill_fail)
	for percent in 100 60 30 60 30 10; do
		put $((percent % 3 * 2)) "$TEST/order"
		arm_faults "$percent"
		(
			# Opened before, which would fail most often.
			exec 8> "$TEST/held"
			echo 1 > /proc/self/make-it-fail
			for i in 1 2 3 4 5 6 7 8; do
				echo $((i * 20)) >&8
			done
		) 2> /dev/null
		disarm_faults
		expect_nothing_half_done "$percent % fail"
	done
	expect "failed refills" "$(vm unmapped_refill_fail)" -gt "$fails"
	wait_for 5 direct_map_is "$before" ||
		fail "the direct map was $before, and is $(direct_map)"
}

# Freed pages have been cleared, and count as available.
all_is_free() { [ "$(free_pages)" -ge $((($(mem Unmapped) - OTHERS) / 4 - 512)) ]; }

# Nobody is killed as long as something is cached, and somebody is afterwards.
test_out_of_memory() {
	free=$(mem MemAvailable)
	refills=$(vm unmapped_refill)
	secret $((free / 2048)) 1
	wait_for 60 all_is_free || fail "$(free_pages) pages are free of $(mem Unmapped) kB"
	cached=$(mem Unmapped)
	note "$(($(vm unmapped_refill) - refills)) refills"
	[ "$cached" -ge $((free / 3)) ] || skip "only $cached kB are cached"
	kills=$(vm oom_kill)
	mib=$(($(mem MemAvailable) / 1024 - 128))
	"$HERE/memory_hog" "$mib" 0 thp > /dev/null || fail "no $mib MiB of memory"
	expect "processes killed" "$(vm oom_kill)" -eq "$kills"
	note "$mib MiB were used: of $cached kB that were cached $(mem Unmapped) kB are left"
	secret 64 1
	cached=$(mem Unmapped)
	overcommit=$(get /proc/sys/vm/overcommit_memory)
	put 1 /proc/sys/vm/overcommit_memory
	(
		echo 1000 > /proc/self/oom_score_adj
		exec "$HERE/memory_hog" $((free / 1024 + 1024)) 0 thp > /dev/null 2>&1
	)
	put "$overcommit" /proc/sys/vm/overcommit_memory
	expect "processes killed" "$(vm oom_kill)" -gt "$kills"
	left=$(($(mem Unmapped) - OTHERS))
	note "of $cached kB that were cached $left kB were left when a process was killed"
	expect "cached when a process was killed" "$left" -le 8192
}

# block_of PFN: the memory block that has it.
block_of() {
	size=$((0x$(get "$MEMORY/block_size_bytes")))
	echo "$MEMORY/memory$(($1 * 4096 / size))"
}

# Memory that is the kernel's to use: what is cached there does not keep it from
# going offline, what is in use does.
test_block_goes_offline() {
	load_test
	block=$(movable_blocks | tail -n 1)
	[ -n "$block" ] || skip "no memory block in zone Movable"
	drop_cache
	before=$(direct_map)
	error=$(offline "$block")
	[ -z "$error" ] || fail "$block does not go offline: $error"
	put online_kernel "$block/state"
	node=$(find "$block/" -maxdepth 1 -name 'node[0-9]*' | sed 's/.*node//')
	mask=$(cpu_of "$node")
	put 9 "$TEST/order"
	count=0
	inside=
	while [ -z "$inside" ] && [ "$count" -lt 1000 ]; do
		count=$((count + 16))
		taskset "${mask:-1}" sh -c "echo $count > $TEST/held" 2> /dev/null || break
		for pfn in $(get "$TEST/held_blocks" | awk 'NR <= 16 { print $1 }'); do
			[ "$(block_of "$pfn")" != "$block" ] || inside=$pfn
		done
	done
	held=$(offline_of_use "$block" "$inside")
	put 0 "$TEST/held"
	put 0 "$TEST/order"
	cached=$(mem Unmapped)
	error=$(offline "$block")
	left=$(mem Unmapped)
	[ "$(cat "$block/state")" = online ] || put online_movable "$block/state"
	[ -n "$inside" ] || skip "no page of $block was handed out"
	[ -n "$held" ] || fail "$block went offline with pages in use"
	[ -z "$error" ] || skip "$block does not go offline: $error"
	note "with pages in use: $held; with $cached kB cached: offline, $left kB left"
	wait_for 5 direct_map_is "$before" || drop_cache
	wait_for 5 direct_map_is "$before" ||
		fail "the direct map was $before, and is $(direct_map)"
	hold_blocks 600
	expect "pages that can be read" "$(get "$TEST/held_readable")" -eq 0
	put 0 "$TEST/held"
	drop_cache
	expect "released pages that can be read" "$(get "$TEST/freed_readable")" -eq 600
}

# offline_of_use BLOCK PFN: what is said to it while the page is in use.
offline_of_use() { [ -z "$2" ] || offline "$1"; }

# Refills, frees, reclaim, compaction and others that want memory, all at once.
test_stress() {
	load_test
	drop_cache
	before=$(direct_map)
	kills=$(vm oom_kill)
	setsid "$HERE/secretmem_check" 12 1000000 3 > /tmp/stress.out 2>&1 &
	secrets=$!
	trap 'kill -- -$secrets' EXIT
	seconds=20
	is_debug_kernel && seconds=10
	end=$(($(date +%s) + ${STRESS_SECONDS:-$seconds}))
	order=0
	while [ "$(date +%s)" -lt "$end" ]; do
		put "$order" "$TEST/order"
		echo $((1024 >> order)) > "$TEST/held" 2> /dev/null
		echo 3 > /proc/sys/vm/drop_caches
		put 0 "$TEST/held"
		"$HERE/memory_hog" $(($(mem MemAvailable) / 1024 - 256)) 0 thp > /dev/null &
		echo $((512 >> order)) > "$TEST/held" 2> /dev/null
		echo 2 > /proc/sys/vm/drop_caches
		[ ! -w "$COMPACT" ] || echo 1 > "$COMPACT"
		expect "pages that can be read" "$(get "$TEST/held_readable")" -eq 0
		order=$(((order + 3) % 10))
		wait $!
	done
	trap - EXIT
	kill -- "-$secrets" || fail "no process is left: $(cat /tmp/stress.out)"
	wait "$secrets"
	[ ! -s /tmp/stress.out ] || fail "$(cat /tmp/stress.out)"
	rm -f /tmp/stress.out
	put 0 "$TEST/held"
	put 0 "$TEST/order"
	expect "processes killed" "$(vm oom_kill)" -eq "$kills"
	drop_cache
	wait_for 10 direct_map_is "$before" ||
		fail "the direct map was $before, and is $(direct_map)"
}

test_log() { expect_clean_log; }

begin_unmapped
trap 'disarm_faults; restore' EXIT
run each_allocation_fails allocations_fail_at_random out_of_memory block_goes_offline \
	stress broken_while_cached broken_and_released broken_while_held broken_secret \
	broken_secret_of_many log
