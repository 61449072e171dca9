#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Memory blocks and CPUs go offline and come back while free memory is reported.

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"

start_load() {
	"$HERE/memory_check" 256 "$1" > /dev/null &
	LOAD=$!
}

end_load() {
	wait "$LOAD" || fail "memory in use lost its content"
}

# Of the others the kernel only knows by trying; the last are the least used.
candidates() {
	if [ -n "$(movable_blocks)" ]; then
		movable_blocks
	else
		printf '%s\n' "$MEMORY"/memory[0-9]* | sort -rV | head -n 12
	fi
}

# Says which block went offline, and how it comes back: a block at the end of zone
# Movable belongs to that no more while it is offline.
offline_memory() {
	for block in $(candidates); do
		[ "$(cat "$block/state")" = online ] || continue
		back=online
		[ "$(cat "$block/valid_zones")" != Movable ] || back=online_movable
		[ -z "$(offline "$block")" ] || continue
		echo "$block/state $back"
		return
	done
}

# online_memory BLOCK: what offline_memory said.
online_memory() { put "${1#* }" "${1% *}"; }

# enough CYCLES: or a reason why there were none.
enough() {
	[ "$1" -gt 0 ] && return
	[ -z "$(movable_blocks)" ] || fail "no block in zone Movable goes offline"
	skip "no memory block can be taken offline"
}

test_memory() {
	[ -d "$MEMORY" ] || skip "no memory hotplug"
	cycles=0
	start_load 20
	for i in 1 2 3 4 5 6; do
		block=$(offline_memory)
		[ -n "$block" ] || break
		sleep 0.$i
		online_memory "$block"
		cycles=$((cycles + 1))
	done
	end_load
	note "$cycles of 6 blocks went offline and came back"
	enough "$cycles"
}

# An isolated pageblock must not be reported, nor lost by what was reported.
test_memory_with_mock() {
	load_mock || skip "freepage_test.ko was not built for this kernel"
	unbind_balloons
	keep_off_pcp_lists
	# Another treatment, if there is one, has to get along with it, too.
	[ ! -d "$TREATMENT" ] || echo 1 > "$TREATMENT/enabled"
	start_mock 9
	cycles=0
	for delay in 0 1000 20000; do
		put "$delay" "$MOCK/delay_us"
		hold 256 9
		drop_all
		block=$(offline_memory)
		[ -n "$block" ] || break
		online_memory "$block"
		cycles=$((cycles + 1))
	done
	put 0 "$MOCK/delay_us"
	settle
	expect_no_bad
	put 0 "$MOCK/register"
	[ ! -d "$TREATMENT" ] || echo 0 > "$TREATMENT/enabled"
	rebind_balloons
	enough "$cycles"
}

test_cpu() {
	cpu=/sys/devices/system/cpu/cpu1/online
	[ -w "$cpu" ] || skip "no second CPU that can be taken offline"
	start_load 15
	for i in 1 2 3 4 5 6 7 8; do
		put 0 "$cpu"
		sleep 0.$i
		put 1 "$cpu"
		sleep 0.2
	done
	end_load
}

test_log() { expect_clean_log; }

begin
need_reporting
put 20 "$PARAMS/page_reporting_delay_ms"
put 0 "$PARAMS/page_reporting_order"
run memory memory_with_mock cpu log
