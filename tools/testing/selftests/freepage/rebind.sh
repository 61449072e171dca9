#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# The balloon is unbound and bound again, and order and delay change, while a
# load allocates, frees and checks its memory.

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"

ROUNDS=20

start_load() {
	"$HERE/memory_check" 512 "$1" > /dev/null &
	LOAD=$!
}

end_load() {
	wait "$LOAD" || fail "memory in use lost its content"
}

test_rebind() {
	start_load 15
	for i in $(seq "$ROUNDS"); do
		unbind_balloons
		[ $((i % 4)) -gt 0 ] || sleep 0.3
		rebind_balloons
		[ $((i % 3)) -gt 0 ] || sleep 0.3
	done
	end_load
	expect "balloons bound" "$(balloons)" != ""
}

test_change_order_and_delay() {
	start_load 15
	for i in $(seq "$ROUNDS"); do
		for order in 0 9 5 10; do
			put "$order" "$PARAMS/page_reporting_order"
			put $((i * 7 % 50)) "$PARAMS/page_reporting_delay_ms"
			sleep 0.1
		done
	done
	end_load
}

test_log() { expect_clean_log; }

begin
need_reporting
need_balloon
put 20 "$PARAMS/page_reporting_delay_ms"
run rebind change_order_and_delay log
