#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# What page reporting costs, outside of the device's report(): one line for each
# figure. With QEMU's "-icount shift=0,sleep=off" and one CPU a cycle is an
# instruction, so that the figures are the same in every run. Wants 4 GiB of
# memory, and no other reporting device for the first pairs.

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"

DELAY="$PARAMS/page_reporting_delay_ms"

# emit CASE METRIC UNIT VALUE
emit() {
	printf 'bench: {"bench":"reporting","case":"%s","metric":"%s","unit":"%s","value":%s}\n' \
		"$1" "$2" "$3" "$4"
}

give_up() {
	echo "bench: $*" >&2
	exit "$KSFT_FAIL"
}

# The shell's own read takes no memory that the guest would have to free again.
counter() {
	read -r COUNT < "$MOCK/$1" || give_up "cannot read $MOCK/$1"
}

# ratio A B: A / B with three digits after the point.
ratio() {
	echo "$(($1 / $2)).$(printf %03d $((($1 % $2) * 1000 / $2)))"
}

# figures CASE PER: what was counted since the last reset, divided by PER.
figures() {
	for pair in pass_cycles:instructions entries:entries bytes:bytes \
		reports:reports passes:passes; do
		counter "${pair%:*}"
		emit "$1" "${pair%:*}" "${pair#*:}" "$(ratio "$COUNT" "$2")"
	done
	counter longest_gap_cycles
	emit "$1" "longest stretch without report()" instructions "$COUNT"
	counter bad
	[ "$COUNT" -eq 0 ] || give_up "$1: bad entries: $(cat "$MOCK/bad_kinds")"
}

# measure CASE PER COMMAND...: once for the figures, and once more for the time
# that interrupts are off, since measuring that costs time.
measure() {
	what=$1
	per=$2
	shift 2
	"$@"
	figures "$what" "$per"
	[ -e "$MOCK/meter_us" ] || return
	echo 5 > "$MOCK/meter_us"
	"$@"
	counter longest_irqs_off_ns
	emit "$what" "longest hold" ns "$COUNT"
	echo 0 > "$MOCK/meter_us"
}

settle() {
	echo 600000 > "$MOCK/wait_idle" ||
		give_up "reporting does not become idle in 600 s"
}

hold() {
	echo "$2" > "$MOCK/hold_order"
	echo "$1" > "$MOCK/hold_mib" ||
		give_up "cannot get $1 MiB in blocks of order $2: start the guest with more memory"
}

# What is due is put off until the state to be measured is there.
reset() {
	echo 5000 > "$DELAY"
	echo 1 > "$MOCK/reset"
}

go() {
	echo 10 > "$DELAY"
	settle
}

free_1gib() {
	hold 1024 10
	settle
	reset
	drop_all
	go
}

# All is reported but one block.
one_pass() {
	reset
	echo 10 > "$MOCK/kick"
	go
}

every_other_4k() {
	hold 2048 9
	settle
	reset
	echo 2 > "$MOCK/hold_thin"
	# Where no free block is large enough nothing is due.
	echo 10 > "$MOCK/kick"
	go
}

# 2560 pages four times.
single_pages() {
	hold 10 0
	drop_all
	settle
	echo 1 > "$MOCK/reset"
	for _ in 1 2 3 4; do
		hold 10 0
		drop_all
		settle
	done
}

# Pages that lie alone between reported ones: one of 32 in 1 GiB.
lone_pages() {
	hold 1024 9
	echo 32 > "$MOCK/hold_thin"
	echo 10 > "$MOCK/kick"
	settle
	echo 1 > "$MOCK/reset"
	for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do
		echo 512 > "$MOCK/hold_drop"
		settle
	done
}

bench_order() {
	start_mock "$1"
	echo 0 > "$MOCK/track"
	go
	measure "order $1: 1 GiB freed in one piece" 1 free_1gib
	measure "order $1: a pass, all reported" 1 one_pass
	measure "order $1: every other 4K of 2 GiB freed" 1 every_other_4k
	measure "order $1: a pass, every other 4K of 2 GiB free, all reported" \
		1 one_pass
	drop_all
	settle
	measure "order $1: per 4K allocated and freed, 2560 at a time" \
		10240 single_pages
	measure "order $1: per lone 4K freed, 512 at a time" 8192 lone_pages
	drop_all
	settle
}

bench_pairs() {
	for order in 0 2 4 9 10; do
		# The first time fills caches and per-CPU lists.
		for _ in 1 2; do
			echo "$order" > "$MOCK/pairs" ||
				give_up "cannot allocate blocks of order $order"
		done
		counter pairs
		emit "order $order: allocate and free, $1" pair instructions \
			"$(ratio "$COUNT" 1000)"
	done
}

begin > /dev/null
[ -d "$PARAMS" ] || give_up "kernel without CONFIG_PAGE_REPORTING"
# The module measures interrupts only with timers that are fine enough, and
# those come up a second after boot.
wait_for 5 grep -q 'hres_active *: 1' /proc/timer_list
load_mock || give_up "freepage_test.ko cannot be loaded: build it for this kernel"
if [ -z "$(balloons)" ]; then
	bench_pairs "no device"
fi
unbind_balloons
keep_off_pcp_lists
start_mock 9
put 5000 "$DELAY"
bench_pairs "idle device"
for order in 9 4 0; do
	bench_order "$order"
done
put 0 "$MOCK/register"
bench_pairs "device gone"
echo "bench: done"
