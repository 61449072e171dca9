#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Suspend freezes the workqueue of page reporting; afterwards it goes on. After
# hibernation it begins anew.

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

# freeze [STATE]
freeze() {
	echo freezer > /sys/power/pm_test
	error=$(error_of "${1:-$STATE}" /sys/power/state)
	echo none > /sys/power/pm_test
	[ -z "$error" ] || fail "freezing for ${1:-$STATE}: $error"
}

test_balloon() {
	[ -n "$(balloons)" ] || skip "no virtio balloon"
	"$HERE/memory_check" 256 30 > /dev/null &
	LOAD=$!
	freeze
	freeze
	kill -0 "$LOAD" || fail "the load ended before the freeze"
	wait "$LOAD" || fail "memory in use lost its content"
}

# pm_test holds the frozen state for five seconds. The pass is due within them,
# and takes its time, so most has to be left when this task runs again.
test_mock() {
	load_mock || skip "freepage_test.ko was not built for this kernel"
	unbind_balloons
	keep_off_pcp_lists
	start_mock 9
	hold 512 9
	settle
	put 3000 "$PARAMS/page_reporting_delay_ms"
	put 500000 "$MOCK/delay_us"
	drop_all
	freeze
	left=$(get "$MOCK/awaited_bytes")
	put 0 "$MOCK/delay_us"
	put 100 "$PARAMS/page_reporting_delay_ms"
	note "$left of 536870912 bytes left after the freeze"
	expect "bytes left, as nothing is reported while frozen" \
		"$left" -ge 268435456
	settle
	expect "freed bytes not reported after the freeze" \
		"$(get "$MOCK/awaited_bytes")" -le 13631488
	expect_no_bad
	put 0 "$MOCK/register"
	rebind_balloons
}

is_inside() { [ "$(get "$MOCK/inside")" -eq 1 ]; }

# A pass that would take sixteen seconds ends after the report that is under way,
# and goes on afterwards. pm_test holds the frozen state for five seconds.
test_pass_under_way() {
	[ -d "$SYSFS" ] || skip "the C implementation makes all of its pass"
	load_mock || skip "freepage_test.ko was not built for this kernel"
	unbind_balloons
	keep_off_pcp_lists
	start_mock 9
	hold 512 9
	settle
	put 1000000 "$MOCK/delay_us"
	drop_all
	wait_for 10 is_inside || fail "no report() call in 10 s"
	start=$(cut -d . -f 1 /proc/uptime)
	freeze
	seconds=$(($(cut -d . -f 1 /proc/uptime) - start))
	put 0 "$MOCK/delay_us"
	note "frozen and thawed after $seconds s"
	expect "seconds" "$seconds" -le 12
	settle
	expect "freed bytes not reported after the freeze" \
		"$(get "$MOCK/awaited_bytes")" -le 13631488
	expect_no_bad
	put 0 "$MOCK/register"
	rebind_balloons
}

# The host of the restored image knows nothing of what was reported before.
test_hibernation() {
	grep -qw disk /sys/power/state || skip "no hibernation"
	[ -d "$SYSFS" ] || skip "the C implementation does not care"
	load_mock || skip "freepage_test.ko was not built for this kernel"
	unbind_balloons
	keep_off_pcp_lists
	start_mock 9
	free=$(free_bytes 9)
	put 1 "$MOCK/reset"
	freeze disk
	settle
	note "$(get "$MOCK/bytes") bytes reported again, $free were free"
	expect "bytes reported again" "$(get "$MOCK/bytes")" -ge $((free * 9 / 10))
	expect_no_bad
	put 0 "$MOCK/register"
	rebind_balloons
}

test_log() { expect_clean_log; }

begin
need_reporting
need_freezer
put 20 "$PARAMS/page_reporting_delay_ms"
run balloon mock pass_under_way hibernation log
