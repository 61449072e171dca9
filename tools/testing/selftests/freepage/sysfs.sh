#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# /sys/kernel/mm/page_reporting: files, defaults, bounds, one truth with the
# module parameters, and statistics that only grow.

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"

SETTINGS="enabled order delay_ms batch"
STATISTICS="bytes_reported reports failures passes backoff_ms longest_hold_ns"

test_files() {
	for file in $SETTINGS; do
		expect "mode of $file" "$(stat -c %a "$SYSFS/$file")" = 644
	done
	for file in $STATISTICS; do
		expect "mode of $file" "$(stat -c %a "$SYSFS/$file")" = 444
	done
	for file in $SETTINGS $STATISTICS; do
		value=$(get "$SYSFS/$file")
		case $value in
		# No order was chosen yet.
		-1) [ "$file" = order ] || fail "$file reads '$value'" ;;
		""|*[!0-9]*) fail "$file reads '$value', want a whole number" ;;
		esac
	done
}

# Nothing but a boot parameter can have changed them before the first test.
test_defaults() {
	expect "enabled" "$(get "$SYSFS/enabled")" -eq 1
	grep -q page_reporting_delay_ms /proc/cmdline ||
		expect "delay_ms" "$OLD_DELAY" -eq 2000
	expect "batch" "$(get "$SYSFS/batch")" -eq 1
}

# refuses FILE VALUE: with EINVAL or ERANGE, and changes nothing.
refuses() {
	before=$(get "$1")
	error=$(error_of "$2" "$1")
	case $error in
	"Invalid argument"|*"range"*|*"Range"*|"Numerical result"*) ;;
	*) fail "'$2' written to $1: '${error:-success}', want EINVAL or ERANGE" ;;
	esac
	expect "$1 after writing '$2'" "$(get "$1")" = "$before"
}

takes() {
	put "$2" "$1"
	expect "$1 after writing $2" "$(get "$1")" = "$2"
}

JUNK="-1 x 1x 0x 1.5 4294967296 18446744073709551616 99999999999999999999999"

test_order_bounds() {
	for value in $JUNK 11 64; do
		refuses "$SYSFS/order" "$value"
	done
	refuses "$SYSFS/order" ""
	for value in 0 10 9; do
		takes "$SYSFS/order" "$value"
	done
}

test_delay_bounds() {
	for value in $JUNK; do
		refuses "$SYSFS/delay_ms" "$value"
	done
	refuses "$SYSFS/delay_ms" ""
	for value in 0 1 100 2000; do
		takes "$SYSFS/delay_ms" "$value"
	done
}

test_batch_bounds() {
	old=$(get "$SYSFS/batch")
	for value in $JUNK 0; do
		refuses "$SYSFS/batch" "$value"
	done
	refuses "$SYSFS/batch" ""
	takes "$SYSFS/batch" 1
	takes "$SYSFS/batch" "$old"
}

test_enabled_bounds() {
	# Any boolean of the kernel's is one, so 1x is.
	for value in -1 x 2 99; do
		refuses "$SYSFS/enabled" "$value"
	done
	refuses "$SYSFS/enabled" ""
	takes "$SYSFS/enabled" 0
	takes "$SYSFS/enabled" 1
}

test_one_truth() {
	for value in 4 9; do
		put "$value" "$SYSFS/order"
		expect "page_reporting_order" \
			"$(get "$PARAMS/page_reporting_order")" = "$value"
	done
	put 5 "$PARAMS/page_reporting_order"
	expect "order" "$(get "$SYSFS/order")" = 5
	put 9 "$PARAMS/page_reporting_order"
	expect "order" "$(get "$SYSFS/order")" = 9

	put 123 "$SYSFS/delay_ms"
	expect "page_reporting_delay_ms" \
		"$(get "$PARAMS/page_reporting_delay_ms")" = 123
	put 321 "$PARAMS/page_reporting_delay_ms"
	expect "delay_ms" "$(get "$SYSFS/delay_ms")" = 321
}

test_statistics_are_read_only() {
	for file in $STATISTICS; do
		error=$(error_of 0 "$SYSFS/$file")
		case $error in
		"Permission denied"|"Invalid argument"|*[Ii]"/O error"|"Input/output error") ;;
		*) fail "writing to $file: '${error:-success}', want an error" ;;
		esac
	done
}

test_disabled_reports_nothing() {
	load_mock || skip "freepage_test.ko was not built for this kernel"
	unbind_balloons
	keep_off_pcp_lists
	start_mock 9
	hold 128 9
	settle
	put 0 "$SYSFS/enabled"
	put 1 "$MOCK/reset"
	drop_all
	sleep 1
	expect "bytes reported while disabled" "$(get "$MOCK/bytes")" -eq 0
	put 1 "$SYSFS/enabled"
	sleep 0.5
	settle
	expect "freed bytes not reported once enabled" \
		"$(get "$MOCK/awaited_bytes")" -le 6815744
	expect_no_bad
}

# Their sum has to be what the device saw.
test_statistics() {
	load_mock || skip "freepage_test.ko was not built for this kernel"
	unbind_balloons
	keep_off_pcp_lists
	start_mock 9
	hold 128 9
	settle
	# Others free memory as well: no pass may run that only one side counts.
	trap 'echo 1 > "$SYSFS/enabled"' EXIT
	put 0 "$SYSFS/enabled"
	put 1 "$MOCK/reset"
	for file in bytes_reported reports failures passes; do
		get "$SYSFS/$file" > "/tmp/freepage.$file" ||
			skip "/tmp cannot be written"
	done
	put 1 "$MOCK/fail"
	put 1 "$SYSFS/enabled"
	drop_all
	settle
	kick 9
	sleep 1
	settle
	put 0 "$SYSFS/enabled"
	for pair in bytes_reported:bytes reports:reports failures:failures \
		passes:passes; do
		file=${pair%:*}
		before=$(get "/tmp/freepage.$file")
		now=$(get "$SYSFS/$file")
		rm -f "/tmp/freepage.$file"
		expect "$file" "$now" -ge "$before"
		seen=$(get "$MOCK/${pair#*:}")
		note "$file grew by $((now - before)), the device saw $seen"
		expect "$file" $((now - before)) -eq "$seen"
	done
	expect "longest_hold_ns" "$(get "$SYSFS/longest_hold_ns")" -gt 0
}

# A device that fails is left alone for longer and longer, and no longer than
# until it works again.
test_back_off() {
	load_mock || skip "freepage_test.ko was not built for this kernel"
	unbind_balloons
	keep_off_pcp_lists
	start_mock 9
	expect "backoff_ms of a device that works" "$(get "$SYSFS/backoff_ms")" -eq 0
	hold 64 9
	settle
	put 1000000 "$MOCK/fail"
	put 1 "$MOCK/reset"
	drop_all
	sleep 3
	backoff=$(get "$SYSFS/backoff_ms")
	failures=$(get "$MOCK/failures")
	put 0 "$MOCK/fail"
	note "$failures failures in 3 s, the delay is $backoff ms"
	expect "backoff_ms of a device that fails" "$backoff" -ge 400
	# 30 passes without back-off; 100 + 200 + 400 + 800 + 1600 ms with it.
	expect "failures in 3 s" "$failures" -le 6
	settle
	expect "backoff_ms after it works" "$(get "$SYSFS/backoff_ms")" -eq 0
	expect "freed bytes that are not reported" \
		"$(get "$MOCK/awaited_bytes")" -le 5242880
}

# So many blocks have to come back before a pass is worth it.
test_batch_delays_a_pass() {
	load_mock || skip "freepage_test.ko was not built for this kernel"
	unbind_balloons
	keep_off_pcp_lists
	start_mock 9
	old=$(get "$SYSFS/batch")
	hold 64 9
	settle
	put 1000000 "$SYSFS/batch"
	# What was due before.
	settle
	put 1 "$MOCK/reset"
	drop_all
	sleep 1
	passes=$(get "$MOCK/passes")
	put "$old" "$SYSFS/batch"
	expect "passes for less than a batch" "$passes" -eq 0
	kick 9
	settle
	expect "freed bytes that are not reported" \
		"$(get "$MOCK/awaited_bytes")" -le 5242880
	expect_no_bad
}

test_log() { expect_clean_log; }

begin
need_reporting
[ -d "$SYSFS" ] || {
	ktap_skip_all "no $SYSFS (CONFIG_PAGE_REPORTING_RUST)"
	exit "$KSFT_SKIP"
}
run files defaults order_bounds delay_bounds batch_bounds enabled_bounds \
	one_truth statistics_are_read_only disabled_reports_nothing statistics \
	back_off batch_delays_a_pass log
