#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Memory in use keeps its content while free memory is reported: with a device
# that overwrites all that it is told of, and with the host behind a balloon,
# which takes the memory away.

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"

SECONDS_EACH=5
SIZE=$(awk '/MemAvailable/ { print int($2 / 1024 / 3) }' /proc/meminfo)

check_memory() {
	result=$("$HERE/memory_check" "$SIZE" "$SECONDS_EACH") ||
		fail "order $1: $result"
	note "order $1: $result"
}

mock() {
	load_mock || skip "freepage_test.ko was not built for this kernel"
	unbind_balloons
	keep_off_pcp_lists
	start_mock "$1"
	put 20 "$PARAMS/page_reporting_delay_ms"
	put 1 "$MOCK/scribble"
	put 1 "$MOCK/reset"
	check_memory "$1"
	expect "bytes reported meanwhile" "$(get "$MOCK/bytes")" -gt 0
	expect_no_bad
	put 0 "$MOCK/register"
	rebind_balloons
}

test_mock_order_9() { mock 9; }
test_mock_order_4() { mock 4; }
test_mock_order_0() { mock 0; }

balloon() {
	[ -n "$(balloons)" ] || skip "no virtio balloon"
	put "$1" "$PARAMS/page_reporting_order"
	put 20 "$PARAMS/page_reporting_delay_ms"
	check_memory "$1"
}

test_balloon_order_9() { balloon 9; }
test_balloon_order_4() { balloon 4; }
test_balloon_order_0() { balloon 0; }

test_log() { expect_clean_log; }

begin
need_reporting
run balloon_order_9 balloon_order_4 balloon_order_0 \
	mock_order_9 mock_order_4 mock_order_0 log
