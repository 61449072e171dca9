#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# A page reporting device registers, is told of free pages once and in full,
# fails, dawdles and leaves.

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"

MIB=1048576

# All that was freed, but for what others have used since.
expect_reported() {
	expect "freed bytes that are not reported" \
		"$(get "$MOCK/awaited_bytes")" -le $((5 * MIB))
}

# Memory that was free before the device came has to be reported too. It is
# allocated before, as it may have been reported to the balloon.
test_first_pass() {
	mib=$(awk '/^MemFree:/ { printf "%d", $2 / 2048 }' /proc/meminfo)
	reset_mock 9
	hold "$mib" 9
	drop_all
	put 1 "$MOCK/register"
	settle
	note "$mib MiB were free, $(get "$MOCK/bytes") bytes reported," \
		"$(get "$MOCK/awaited_bytes") of the free ones not"
	expect "passes" "$(get "$MOCK/passes")" -gt 0
	expect "bytes reported" "$(get "$MOCK/bytes")" -ge $((mib * 19 * MIB / 20))
	expect "free bytes that are not reported" \
		"$(get "$MOCK/awaited_bytes")" -le $((mib * MIB / 20))
	expect_no_bad
}

test_second_register() {
	start_mock 9
	error=$(error_of 1 "$MOCK/register")
	expect "second register" "$error" = "Device or resource busy"
	put 1 "$MOCK/reset"
	hold 64 9
	drop_all
	settle
	expect "bytes reported to the first device" "$(get "$MOCK/bytes")" -gt 0
}

# Five is no divisor of anything here, so the last call of a pass is a short one.
test_capacity() {
	for capacity in 1 5 32; do
		reset_mock 9
		put "$capacity" "$MOCK/capacity"
		put 1 "$MOCK/register"
		hold 64 9
		drop_all
		settle
		expect "capacity" "$(get "$MOCK/capacity")" -eq "$capacity"
		expect "entries in one call" \
			"$(get "$MOCK/most_entries")" -le "$capacity"
		expect "entries in one call" "$(get "$MOCK/most_entries")" -gt 0
		expect_no_bad
	done
}

test_capacity_default() {
	for capacity in 0 33 100000; do
		reset_mock 9
		put "$capacity" "$MOCK/capacity"
		put 1 "$MOCK/register"
		expect "capacity asked for $capacity" \
			"$(get "$MOCK/capacity")" -eq 32
	done
	settle
}

freed_region() {
	order=$1
	start_mock "$order"
	hold 256 "$order"
	settle
	put 1 "$MOCK/reset"
	drop_all
	settle
	left=$(get "$MOCK/awaited_bytes")
	bytes=$(get "$MOCK/bytes")
	note "order $order: $bytes bytes reported, $left of the freed ones not," \
		"$(get "$MOCK/again_bytes") again"
	expect "freed bytes that are not reported" "$left" -le $((5 * MIB))
	# A freed block that merges with a reported one may be reported with it.
	expect "bytes reported" "$bytes" -le $((640 * MIB))
	expect_no_bad
}

test_freed_region_order_9() { freed_region 9; }
test_freed_region_order_4() { freed_region 4; }
test_freed_region_order_0() { freed_region 0; }

# The noise of this script is all that there is to report.
test_idle_guest() {
	start_mock 9
	put 1 "$MOCK/reset"
	sleep 3
	note "$(get "$MOCK/passes") passes, $(get "$MOCK/bytes") bytes"
	expect "passes of an idle guest in 30 delays" \
		"$(get "$MOCK/passes")" -le 31
	expect "bytes reported by an idle guest" \
		"$(get "$MOCK/bytes")" -le $((32 * MIB))
}

# What failed may have to wait until the next free starts a pass. One free, since
# each allocation makes some blocks unreported whatever they were before.
expect_retried() {
	kick 9
	settle
	expect "freed bytes that are not reported after failures ended" \
		"$(get "$MOCK/awaited_bytes")" -le $((5 * MIB))
	expect_no_bad
}

test_failed_report() {
	start_mock 9
	hold 256 9
	settle
	put 1000000 "$MOCK/fail"
	put 1 "$MOCK/reset"
	drop_all
	sleep 1
	expect "failures" "$(get "$MOCK/failures")" -gt 0
	expect "bytes reported by calls that failed" "$(get "$MOCK/bytes")" -eq 0
	put 0 "$MOCK/fail"
	expect_retried
}

# One failure in the middle must not lose what was reported before or after it.
test_one_failure() {
	start_mock 9
	hold 256 9
	settle
	put 1 "$MOCK/reset"
	put 1 "$MOCK/fail"
	drop_all
	settle
	expect "failures" "$(get "$MOCK/failures")" -eq 1
	expect_retried
}

is_inside() { [ "$(get "$MOCK/inside")" -eq 1 ]; }

test_unregister_waits() {
	start_mock 9
	hold 256 9
	put 1000000 "$MOCK/delay_us"
	drop_all
	wait_for 10 is_inside || fail "no report() call in 10 s"
	put 0 "$MOCK/register"
	expect "report() calls when unregister returns" "$(get "$MOCK/inside")" -eq 0
	expect_no_bad
	put 0 "$MOCK/delay_us"
}

test_silent_after_unregister() {
	start_mock 9
	put 0 "$MOCK/register"
	put 1 "$MOCK/reset"
	hold 128 9
	drop_all
	sleep 1
	expect "reports without a device" "$(get "$MOCK/reports")" -eq 0
	expect "passes without a device" "$(get "$MOCK/passes")" -eq 0
	expect_no_bad
}

test_register_again() {
	start_mock 9
	for i in 1 2 3 4 5 6 7 8 9 10; do
		put 0 "$MOCK/register"
		put 1 "$MOCK/register"
		[ $((i % 3)) -gt 0 ] || sleep 0.15
	done
	hold 64 9
	drop_all
	settle
	expect_no_bad
}

# Pages that lie alone in reported memory, freed: their neighbours must not be
# reported again because the blocks merge.
test_merge_keeps_reported() {
	start_mock 0
	hold 256 9
	put 32 "$MOCK/hold_thin"
	kick 10
	settle
	put 1 "$MOCK/reset"
	drop_all
	settle
	bytes=$(get "$MOCK/bytes")
	note "8 MiB freed in lone pages, $bytes bytes reported," \
		"$(get "$MOCK/again_bytes") of them again"
	expect "freed bytes that are not reported" \
		"$(get "$MOCK/awaited_bytes")" -le $((2 * MIB))
	expect_no_bad
	[ -d "$SYSFS" ] || skip "mm/page_reporting.c reports merged blocks again"
	expect "bytes reported" "$bytes" -le $((32 * MIB))
}

# prompt: whether what is held is reported in ten seconds after it was freed by
# the command given, at the default delay.
is_reported() { [ "$(get "$MOCK/awaited_bytes")" -le "$ENOUGH" ]; }

prompt() {
	put 2000 "$PARAMS/page_reporting_delay_ms"
	"$@"
	ENOUGH=$(($(get "$MOCK/awaited_bytes") / 20))
	start=$(cut -d . -f 1 /proc/uptime)
	wait_for 60 is_reported || fail "not reported after 60 s"
	seconds=$(($(cut -d . -f 1 /proc/uptime) - start))
	put 100 "$PARAMS/page_reporting_delay_ms"
	note "95 % reported after $seconds s"
	expect_no_bad
	[ -d "$SYSFS" ] || [ "$seconds" -le 10 ] ||
		skip "mm/page_reporting.c takes up to 30 s"
	expect "seconds" "$seconds" -le 10
}

test_prompt_in_one_piece() {
	start_mock 9
	hold 1024 10
	settle
	prompt drop_all
}

test_prompt_strewn() {
	start_mock 0
	hold 1024 9
	settle
	prompt put 2 "$MOCK/hold_thin"
}

# Pages that CPUs keep on their lists.
kept() { awk '$1 == "count:" { kept += $2 } END { print kept + 0 }' /proc/zoneinfo; }

# A CPU that allocated much keeps much of what it frees, for half a minute. No
# block of order 9 is free then.
test_lists_of_cpus() {
	echo 0 > "$PCP"
	start_mock 9
	put 2000 "$PARAMS/page_reporting_delay_ms"
	"$HERE/memory_hog" 1024 1 > /dev/null
	settle
	hold 4 9
	"$HERE/memory_hog" 96 > /dev/null
	kept=$(kept)
	drop_all
	[ "$kept" -ge 8192 ] || skip "CPUs keep $kept pages, no more"
	sleep 6
	note "CPUs keep $(kept) of $kept pages"
	# Each CPU may keep 2 MiB and four batches of each zone.
	expect "pages kept" "$(kept)" -le 6144
	expect_no_bad
}

mem_free() { awk '/^MemFree:/ { print $2 }' /proc/meminfo; }

# Every page that was isolated has to come back, whatever report() says. The first
# test: what is going to be lost may be lost by the end of another.
test_nothing_lost() {
	before=$(mem_free)
	for order in 9 4 0 9; do
		start_mock "$order"
		put 3 "$MOCK/fail"
		hold 512 4
		drop_all
		settle
		kick "$order"
		settle
	done
	# The C code calls the device less often after a failure.
	put 0 "$MOCK/fail"
	lost=$((before - $(mem_free)))
	note "$lost KiB less free than before"
	expect "KiB lost" "$lost" -le 8192
}

# Nobody allocates, so there is nothing to wait for: it is due after a quarter of the
# delay. Not looked at meanwhile, since that allocates.
test_adaptive_delay() {
	[ -e "$SYSFS/adaptive" ] || skip "mm/page_reporting.c has a fixed delay"
	start_mock 9
	for adaptive in 0 1; do
		put "$adaptive" "$SYSFS/adaptive"
		hold 512 10
		settle
		put 20000 "$PARAMS/page_reporting_delay_ms"
		drop_all
		freed=$(get "$MOCK/awaited_bytes")
		sleep 13
		left=$(get "$MOCK/awaited_bytes")
		put 100 "$PARAMS/page_reporting_delay_ms"
		note "adaptive $adaptive: $left of $freed bytes left after 13 s of 20"
		if [ "$adaptive" -eq 0 ]; then
			expect "bytes left before the delay is over" "$left" -ge $((freed / 2))
		else
			expect "bytes left where nobody allocates" "$left" -le $((freed / 20))
		fi
		settle
	done
}

# While memory is used and freed in turns, passes come no earlier.
test_adaptive_delay_under_load() {
	[ -e "$SYSFS/adaptive" ] || skip "mm/page_reporting.c has a fixed delay"
	start_mock 9
	put 2000 "$PARAMS/page_reporting_delay_ms"
	cycles=/tmp/freepage.cycles
	: > "$cycles"
	while "$HERE/memory_hog" 128 0 > /dev/null 2>&1; do echo; done >> "$cycles" &
	LOAD=$!
	for adaptive in 0 1; do
		put "$adaptive" "$SYSFS/adaptive"
		# The module would also count when it is only looked.
		before=$(get "$SYSFS/passes")
		sleep 12
		eval "passes_$adaptive=$(($(get "$SYSFS/passes") - before))"
	done
	kill "$LOAD"
	wait "$LOAD" 2> /dev/null
	# shellcheck disable=SC2154
	note "passes in 12 s: $passes_1, with a fixed delay $passes_0;" \
		"128 MiB were used $(wc -l < "$cycles") times"
	[ "$(wc -l < "$cycles")" -ge 12 ] || skip "too slow for a load"
	expect "passes with adaptive 1" "$passes_1" -le $((passes_0 + 3))
}

test_flush() {
	[ -e "$SYSFS/flush" ] || skip "mm/page_reporting.c has no flush"
	reset_mock 9
	error=$(error_of all "$SYSFS/flush")
	expect "flush without a device" "$error" = "No such device"
	start_mock 9
	for bad in "" x -1 1x 16E 99999999999999999999; do
		[ -n "$(error_of "$bad" "$SYSFS/flush")" ] || fail "flush takes '$bad'"
	done
	hold 256 9
	settle
	hold_off
	put 1 "$MOCK/reset"
	drop_all
	put 65M "$SYSFS/flush"
	bytes=$(get "$MOCK/bytes")
	expect "bytes reported of 65 MiB" "$bytes" -le $((65 * MIB))
	expect "bytes reported of 65 MiB" "$bytes" -ge $((60 * MIB))
	put all "$SYSFS/flush"
	expect_reported
	put 100 "$PARAMS/page_reporting_delay_ms"
	expect_no_bad
}

# start_both ORDER: both know of all that is free.
start_both() {
	[ -d "$TREATMENT" ] || skip "kernel without CONFIG_FREEPAGE_TEST"
	put "$1" "$TREATMENT/order"
	put 100 "$TREATMENT/delay_ms"
	for setting in sleep_ms fail runs; do
		put 0 "$TREATMENT/$setting"
	done
	put 1 "$TREATMENT/enabled"
	start_mock "$1"
}

treated() { echo $(($(get "$TREATMENT/pages") * 4096)); }

# What a test ends with if it passes; the next test begins with it if not.
stop_treatment() {
	put 0 "$TREATMENT/sleep_ms"
	put 0 "$TREATMENT/fail"
	put 0 "$TREATMENT/enabled"
}

# The other treatment has as much to do as reporting, and nothing waits for it.
is_quiet() {
	was=$(treated)
	sleep 0.5
	[ "$(treated)" -eq "$was" ]
}
settle_both() {
	settle
	wait_for 300 is_quiet || fail "the treatment does not come to rest"
}

# is_treated BYTES: since there were so many.
is_treated() { [ "$(treated)" -ge "$1" ]; }

# both_see BEFORE MIB: so much was freed, after the treatment had treated so much.
both_see() {
	settle
	expect_reported
	wait_for 60 is_treated $(($1 + $2 * MIB)) ||
		fail "of $2 MiB freed $(($(treated) - $1)) bytes are treated"
	expect_no_bad
}

test_two_treatments() {
	for order in 9 0; do
		start_both "$order"
		hold 256 "$order"
		settle_both
		before=$(treated)
		put 1 "$MOCK/reset"
		drop_all
		both_see "$before" 250
		sleep 1
		note "order $order: $(get "$MOCK/bytes") bytes reported," \
			"$(($(treated) - before)) treated"
	done
	# Nothing is treated twice. With larger units, all of each is that this shell used.
	expect "bytes treated" $(($(treated) - before)) -le $((640 * MIB))
	expect "bytes reported" "$(get "$MOCK/bytes")" -le $((640 * MIB))
	stop_treatment
}

has_failed() { [ "$(get "$TREATMENT/failures")" -gt 0 ]; }

# What one does not treat, or not yet, the other does.
test_one_of_two_fails() {
	start_both 9
	hold 256 9
	settle_both
	put 1000000 "$TREATMENT/fail"
	before=$(treated)
	put 1 "$MOCK/reset"
	drop_all
	settle
	expect_reported
	wait_for 60 has_failed || fail "the treatment does not fail"
	expect "bytes treated by calls that failed" "$(treated)" -eq "$before"
	put 0 "$TREATMENT/fail"
	both_see "$before" 250

	hold 256 9
	settle_both
	before=$(treated)
	put 1000000 "$MOCK/fail"
	drop_all
	wait_for 60 is_treated $((before + 250 * MIB)) ||
		fail "$(($(treated) - before)) bytes are treated while the device fails"
	put 0 "$MOCK/fail"
	kick 9
	settle
	expect_reported
	stop_treatment
}

test_one_of_two_does_a_part() {
	start_both 0
	put 3 "$TREATMENT/runs"
	hold 64 4
	settle_both
	before=$(treated)
	drop_all
	both_see "$before" 60
	stop_treatment
}

test_one_of_two_leaves() {
	start_both 9
	hold 256 9
	settle
	for i in 1 2 3 4 5; do
		put 0 "$TREATMENT/enabled"
		put 1 "$TREATMENT/enabled"
	done
	put 1 "$MOCK/reset"
	put 200 "$TREATMENT/sleep_ms"
	drop_all
	sleep 0.15
	# It ends between two batches, of which there would be more.
	start=$(cut -d ' ' -f 1 /proc/uptime)
	put 0 "$TREATMENT/enabled"
	ms=$(awk -v start="$start" '{ printf "%d\n", ($1 - start) * 1000 }' /proc/uptime)
	note "it took $ms ms to leave, with batches of 200 ms"
	expect "ms to leave" "$ms" -le 8000
	settle
	expect_reported

	# And the other way round.
	put 0 "$TREATMENT/sleep_ms"
	put 1 "$TREATMENT/enabled"
	hold 256 9
	settle
	before=$(treated)
	put 0 "$MOCK/register"
	drop_all
	wait_for 60 is_treated $((before + 250 * MIB)) ||
		fail "$(($(treated) - before)) bytes are treated without the device"
	stop_treatment
}

test_log() { expect_clean_log; }

begin
need_reporting
need_mock
run nothing_lost first_pass second_register capacity capacity_default \
	freed_region_order_9 freed_region_order_4 freed_region_order_0 \
	idle_guest failed_report one_failure unregister_waits \
	silent_after_unregister register_again \
	merge_keeps_reported prompt_in_one_piece prompt_strewn lists_of_cpus \
	adaptive_delay adaptive_delay_under_load flush \
	two_treatments one_of_two_fails one_of_two_does_a_part one_of_two_leaves log
