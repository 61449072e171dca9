#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# The tracepoints of page reporting tell what the device sees.

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"

TRACING=/sys/kernel/tracing
EVENTS="$TRACING/events/page_reporting"

# sum EVENT FIELD: of the numbers in the trace.
sum() {
	sed -n "s/.*page_reporting_$1:.* $2=\(-\{0,1\}[0-9]*\).*/\1/p" \
		"$TRACING/trace" | awk '{ sum += $1 } END { printf "%.0f\n", sum }'
}

count() { grep -c "page_reporting_$1:" "$TRACING/trace"; }

test_pass_and_report() {
	start_mock 9
	hold 128 9
	settle
	# Others free memory as well: no pass may run where only one of the trace
	# and the counters of the device sees it.
	put 0 "$SYSFS/enabled"
	put 1 "$MOCK/reset"
	put 1 "$MOCK/fail"
	echo > "$TRACING/trace"
	put 1 "$EVENTS/enable"
	put 1 "$SYSFS/enabled"
	drop_all
	settle
	kick 9
	sleep 1
	settle
	put 0 "$SYSFS/enabled"
	put 0 "$EVENTS/enable"

	reports=$(get "$MOCK/reports")
	failures=$(get "$MOCK/failures")
	bytes=$(($(get "$MOCK/bytes") / 4096))
	expect "reports" "$reports" -gt 0
	expect "begins" "$(count begin)" -eq "$(get "$MOCK/passes")"
	expect "ends" "$(count end)" -eq "$(get "$MOCK/passes")"
	expect "pages in all ends" "$(sum end pages)" -eq "$bytes"
	expect "reports in the trace" \
		"$(count report)" -eq $((reports + failures))
	expect "sum of errors" "$(sum report error)" -eq $((failures * -5))
	expect "entries without those of the one failure" \
		"$(sum report entries)" -gt "$(get "$MOCK/entries")"
	expect "orders" \
		"$(sum begin order)" -eq $(($(get "$MOCK/passes") * 9))
}

test_log() { expect_clean_log; }

begin
need_reporting
[ -d "$TRACING/events" ] || mount -t tracefs none "$TRACING" 2> /dev/null
[ -d "$EVENTS" ] || {
	ktap_skip_all "no $EVENTS (CONFIG_PAGE_REPORTING_RUST, CONFIG_ENABLE_DEFAULT_TRACERS)"
	exit "$KSFT_SKIP"
}
need_mock
run pass_and_report log
