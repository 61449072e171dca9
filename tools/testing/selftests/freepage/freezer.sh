#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Suspend freezes the workqueue of page reporting; afterwards it goes on.

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"

# Sets pm_test and what to write to /sys/power/state.
need_freezer() {
	[ -w /sys/power/pm_test ] ||
		{ ktap_skip_all "no /sys/power/pm_test (CONFIG_PM_DEBUG)"; exit "$KSFT_SKIP"; }
	grep -q freezer /sys/power/pm_test ||
		{ ktap_skip_all "pm_test has no freezer"; exit "$KSFT_SKIP"; }
	for STATE in freeze mem disk; do
		! grep -qw "$STATE" /sys/power/state || return
	done
	ktap_skip_all "no sleep state"
	exit "$KSFT_SKIP"
}

freeze() {
	echo freezer > /sys/power/pm_test
	error=$(error_of "$STATE" /sys/power/state)
	echo none > /sys/power/pm_test
	[ -z "$error" ] || fail "freezing for $STATE: $error"
}

test_balloon() {
	[ -n "$(balloons)" ] || skip "no virtio balloon"
	"$HERE/memory_check" 256 20 > /dev/null &
	LOAD=$!
	freeze
	freeze
	wait "$LOAD" || fail "memory in use lost its content"
}

# pm_test holds the frozen state for five seconds.
test_mock() {
	load_mock || skip "freepage_test.ko was not built for this kernel"
	unbind_balloons
	keep_off_pcp_lists
	start_mock 9
	hold 256 9
	settle
	put 10000 "$MOCK/delay_us"
	drop_all
	sleep 0.15
	freeze
	put 0 "$MOCK/delay_us"
	settle
	expect "freed bytes not reported after the freeze" \
		"$(get "$MOCK/awaited_bytes")" -le 13631488
	expect_no_bad
	put 0 "$MOCK/register"
	rebind_balloons
}

test_log() { expect_clean_log; }

begin
need_reporting
need_freezer
put 20 "$PARAMS/page_reporting_delay_ms"
run balloon mock log
