#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Registering and reporting while allocations fail: an error or success, but no
# oops, and afterwards all goes on.

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"

FAULTS=
arm() {
	for fault in failslab fail_page_alloc; do
		dir=/sys/kernel/debug/$fault
		[ -d "$dir" ] || continue
		FAULTS="$FAULTS $dir"
		echo Y > "$dir/task-filter"
		echo 1 > "$dir/interval"
		echo -1 > "$dir/times"
		echo 0 > "$dir/space"
		echo 0 > "$dir/verbose"
		# Allocations that may wait fail as well.
		[ ! -e "$dir/ignore-gfp-wait" ] || echo N > "$dir/ignore-gfp-wait"
		[ ! -e "$dir/min-order" ] || echo 0 > "$dir/min-order"
	done
}

probability() {
	for dir in $FAULTS; do
		echo "$1" > "$dir/probability"
	done
}

kworkers_fail() {
	for task in /proc/[0-9]*; do
		case $(cat "$task/comm" 2> /dev/null) in
		kworker/*) echo "$1" > "$task/make-it-fail" ;;
		esac
	done 2> /dev/null
}

# Only the one write is made to fail: the task that does it is a child.
register_under_faults() {
	(
		echo 1 > /proc/self/make-it-fail
		echo 1 > "$MOCK/register"
	) 2>&1 | sed 's/.*: //'
}

test_register() {
	for percent in 100 50 10; do
		probability "$percent"
		for i in 1 2 3 4 5 6 7 8 9 10; do
			error=$(register_under_faults)
			[ "$i" -gt 1 ] ||
				note "$percent % fail: ${error:-registered}"
			case $error in
			""|"Cannot allocate memory"|"Out of memory") ;;
			*) fail "register with $percent % failing: $error" ;;
			esac
			put 0 "$MOCK/register"
		done
	done
	probability 0
	start_mock 9
	expect_no_bad
}

test_report() {
	start_mock 9
	kworkers_fail 1
	probability 30
	for i in 1 2 3 4 5 6; do
		hold 64 9
		drop_all
		sleep 0.3
	done
	probability 100
	hold 64 9
	drop_all
	sleep 1
	probability 0
	kworkers_fail 0
	kick 9
	settle
	kick 9
	settle
	expect "freed bytes that are not reported" \
		"$(get "$MOCK/awaited_bytes")" -le 6815744
	expect_no_bad
}

test_log() { expect_clean_log; }

begin
need_reporting
mount_debugfs
arm
[ -n "$FAULTS" ] || {
	ktap_skip_all "no fault injection (CONFIG_FAILSLAB, CONFIG_FAIL_PAGE_ALLOC)"
	exit "$KSFT_SKIP"
}
trap 'probability 0; restore' EXIT
need_mock
run register report log
