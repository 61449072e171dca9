#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# __GFP_UNMAPPED: memory of vmalloc that is mapped nowhere else, and the flag's
# name where flags are shown.

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"
# shellcheck source=/dev/null
. "$(dirname "$0")/unmapped_lib.sh"

EVENT=/sys/kernel/tracing/events/kmem/mm_page_alloc

need_flag() {
	load_test
	[ -e "$TEST/vmalloc" ] || skip "no __GFP_UNMAPPED (CONFIG_GFP_UNMAPPED)"
	put 0 "$TEST/vmalloc"
}

# hold_area PAGES: on one CPU, so from one node.
hold_area() {
	taskset 1 sh -c "echo $1 > $TEST/vmalloc" || fail "cannot hold an area of $1 pages"
}

# Can be used by its address, and by no other; goes back to the cache.
test_vmalloc() {
	need_flag
	drop_cache
	before=$(direct_map)
	hold_area 700
	expect "an area with content" "$(get "$TEST/vmalloc_dirty")" -eq 0
	expect "an area without the content that was written" \
		"$(get "$TEST/vmalloc_dirty")" -eq 1
	expect "pages that can be read" "$(get "$TEST/vmalloc_readable")" -eq 0
	grep -q 'unmapped_test.* pages=700 unmapped' /proc/vmallocinfo ||
		fail "/proc/vmallocinfo does not say that the area is unmapped"
	refills=$(vm unmapped_refill)
	hold_area 0
	hold_area 700
	expect "refills" "$(vm unmapped_refill)" -eq "$refills"
	expect "an area with content of the last" "$(get "$TEST/vmalloc_dirty")" -eq 0
	put 0 "$TEST/vmalloc"
	expect "free pages that can be read" "$(get "$TEST/freed_readable")" -eq 0
	drop_cache
	expect "released pages that can be read" "$(get "$TEST/freed_readable")" -eq 700
	wait_for 5 direct_map_is "$before" ||
		fail "the direct map was $before, and is $(direct_map)"
}

test_bulk_allocator() {
	need_flag
	expect "pages that can be read" "$(get "$TEST/bulk_readable")" -eq 0
	drop_cache
}

test_shown_by_name() {
	need_flag
	get "$TEST/gfp" | grep -qw __GFP_UNMAPPED || fail "%pGg shows $(get "$TEST/gfp")"
	[ -d "$EVENT" ] || skip "no tracepoint kmem:mm_page_alloc"
	put 1 "$EVENT/enable"
	put 1 "$TEST/vmalloc"
	put 0 "$EVENT/enable"
	grep -q 'mm_page_alloc:.*gfp_flags=.*__GFP_UNMAPPED' /sys/kernel/tracing/trace ||
		fail "no event of mm_page_alloc names the flag"
	echo > /sys/kernel/tracing/trace
	put 0 "$TEST/vmalloc"
}

test_log() { expect_clean_log; }

begin_unmapped
run vmalloc bulk_allocator shown_by_name log
