#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# The order and the delay are changed at run time. What has been reported stays
# so, whatever the order; a lower one adds the smaller blocks.

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"

MIB=1048576
ORDER="$PARAMS/page_reporting_order"
DELAY="$PARAMS/page_reporting_delay_ms"

# 128 MiB of free 4K pages, of which no two are neighbours.
test_lower_order_reports_small_blocks() {
	start_mock 9
	hold 256 9
	settle
	put 1 "$MOCK/reset"
	put 2 "$MOCK/hold_thin"
	kick 9
	settle
	expect_no_bad
	expect "4K bytes not reported at order 9" \
		"$(get "$MOCK/awaited_bytes")" -ge $((120 * MIB))
	put 1 "$MOCK/reset"
	small=$(free_bytes 0 9)
	put 0 "$ORDER"
	kick 0
	settle
	left=$(get "$MOCK/awaited_bytes")
	bytes=$(get "$MOCK/bytes")
	note "$bytes bytes reported, $small were free below order 9," \
		"$left left, $(get "$MOCK/again_bytes") again"
	expect "4K bytes not reported at order 0" "$left" -le $((7 * MIB))
	expect "bytes reported after 9 -> 0" "$bytes" -le $((small + 64 * MIB))
	expect_no_bad
}

test_higher_order() {
	start_mock 0
	put 9 "$ORDER"
	settle
	put 1 "$MOCK/reset"
	hold 128 9
	drop_all
	settle
	expect "freed bytes that are not reported" \
		"$(get "$MOCK/awaited_bytes")" -le $((7 * MIB))
	expect "bytes reported after 0 -> 9" "$(get "$MOCK/bytes")" \
		-le $((320 * MIB))
	expect_no_bad
}

# The whole guest must not be reported again because the order went to and fro.
test_there_and_back() {
	start_mock 9
	put 1 "$MOCK/reset"
	put 10 "$ORDER"
	kick 10
	settle
	put 9 "$ORDER"
	kick 9
	settle
	note "$(get "$MOCK/bytes") bytes reported again"
	expect "bytes reported after 9 -> 10 -> 9" "$(get "$MOCK/bytes")" \
		-le $((64 * MIB))
}

# Entries smaller than an order that changes all the time cannot be judged.
test_change_during_passes() {
	start_mock 9
	put 5 "$DELAY"
	for i in 1 2 3 4 5 6 7 8; do
		for order in 0 9 3 10 4; do
			hold 64 $((i + 1))
			put "$order" "$ORDER"
			drop_all
			put $((i % 2 * 20)) "$DELAY"
		done
	done
	put 9 "$ORDER"
	put 100 "$DELAY"
	settle
	bad=$(grep -v '^order ' "$MOCK/bad_kinds" | grep -v ' 0$' | tr '\n' ' ')
	expect "bad entries" "$bad" = ""
}

test_delay_is_kept() {
	start_mock 9
	put 3000 "$DELAY"
	# What was due before.
	settle
	put 1 "$MOCK/reset"
	kick 9
	sleep 1
	expect "passes before the delay is over" "$(get "$MOCK/passes")" -eq 0
	settle
	expect "passes after the delay" "$(get "$MOCK/passes")" -ge 1
}

test_bad_values() {
	for value in -1 11 99999999999 x; do
		before=$(get "$ORDER")
		error=$(error_of "$value" "$ORDER")
		expect "error of order $value" "$error" != ""
		expect "order after writing $value" "$(get "$ORDER")" -eq "$before"
	done
	for value in -1 99999999999 x; do
		before=$(get "$DELAY")
		error=$(error_of "$value" "$DELAY")
		expect "error of delay $value" "$error" != ""
		expect "delay after writing $value" "$(get "$DELAY")" -eq "$before"
	done
}

test_log() { expect_clean_log; }

begin
need_reporting
need_mock
run lower_order_reports_small_blocks higher_order there_and_back \
	change_during_passes delay_is_kept bad_values log
