#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Executable memory in small pieces: it does what it was written to do, cannot be
# written to, traps when it is free, and goes back. BPF programs are in it.

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"

TABLE=/sys/kernel/debug/jitalloc
TEST=/sys/kernel/debug/jit_test
JIT_ENABLE=/proc/sys/net/core/bpf_jit_enable
FAILSLAB=/sys/kernel/debug/failslab

# total NAME: of the lines below the table.
total() { get "$TABLE" | awk -F ': *' -v name="$1" '$1 == name { print $2 }'; }

# column N: the sum over all sizes. 3 is objects in use, 5 and 6 are wasted bytes.
column() {
	get "$TABLE" | awk -v column="$1" 'NF == 6 && $1 ~ /^[0-9]+$/ { sum += $column }
		END { print sum + 0 }'
}

# What the kernel logs from here on is log_since WHAT, or what is left of it.
mark_log() { echo "jitalloc selftest $$ $1" > /dev/kmsg; }
log_since() {
	dmesg | awk -v mark="jitalloc selftest $$ $1" '
		{ text = index($0, mark) ? "" : text $0 "\n" }
		END { printf "%s", text }'
}

# What is in use: pieces of a page and less, and larger ones.
in_use() { echo "$(column 3)+$(total Large)"; }
in_use_is() { [ "$(in_use)" = "$1" ]; }

blocks_are_at_most() { [ "$(total Blocks)" -le "$1" ]; }

load_test() {
	[ -d "$TEST" ] || insmod "$HERE/test_module/jit_test.ko" 2> /dev/null ||
		modprobe -q jit_test 2> /dev/null
	[ -d "$TEST" ] || skip "jit_test.ko was not built for this kernel"
	put 0 "$TEST/held"
	put 0 "$TEST/len"
	put 1000 "$TEST/loops"
}

# Called at exit.
restore() {
	[ ! -d "$TEST" ] || rmmod jit_test
	[ -z "$OLD_WAIT" ] || echo "$OLD_WAIT" > "$FAILSLAB/ignore-gfp-wait"
	[ -z "$OLD_JIT" ] || echo "$OLD_JIT" > "$JIT_ENABLE"
}

test_table() {
	expect "mode" "$(stat -c %a "$TABLE")" = 444
	expect "columns" "$(get "$TABLE" | awk 'NR == 1 { $1 = $1; print }')" = \
		"Size Objects Used Slabs Internal External"
	sizes=$(get "$TABLE" | awk 'NF == 6 && NR > 1 { print $1 }')
	expect "sizes" "$(echo "$sizes" | wc -l)" -eq 28
	expect "smallest" "$(echo "$sizes" | head -n 1)" -eq 16
	expect "largest" "$(echo "$sizes" | tail -n 1)" -eq 4096
}

# hold COUNT LEN: 0 for any length.
hold() {
	put "$2" "$TEST/len"
	put "$1" "$TEST/held"
	expect "length $2: functions that return something else" "$(get "$TEST/wrong")" -eq 0
	expect "length $2: functions that can be written to" "$(get "$TEST/writable")" -eq 0
}

drop() {
	put 0 "$TEST/held"
	expect "functions that do not trap after they were freed" "$(get "$TEST/stale")" -eq 0
	expect "pieces in use" "$(in_use)" = "$1"
}

test_functions_of_every_length() {
	load_test
	before=$(in_use)
	for len in 11 16 17 48 64 65 100 128 600 2048 3584 4096 4097 8192 100000; do
		hold 40 "$len"
		drop "$before"
	done
	hold 1000 0
	put 1000 "$TEST/update"
	expect "functions that did not change" "$(get "$TEST/wrong")" -eq 0
	put 500 "$TEST/held"
	expect "functions that changed by themselves" "$(get "$TEST/wrong")" -eq 0
	put 1000 "$TEST/held"
	expect "functions that changed by themselves" "$(get "$TEST/wrong")" -eq 0
	drop "$before"
}

test_freed_text_traps() {
	load_test
	expect "traps" "$(get "$TEST/traps")" -eq 1
}

test_mistakes_do_no_harm() {
	load_test
	before=$(in_use)
	mark_log mistakes
	expect "mistakes that were not found" "$(get "$TEST/mistakes")" -eq 0
	expect "pieces in use" "$(in_use)" = "$before"
	messages=$(log_since mistakes | grep -c 'jitalloc: jit_.*nothing was changed')
	expect "messages" "$messages" -ge 5
}

test_flushes_after_a_free() {
	load_test
	expect "flushes" "$(get "$TEST/flushes")" -eq 1
}

# Of what is in use at most a fifth is not asked for, but for the smallest sizes.
test_waste_is_bounded() {
	load_test
	# shellcheck disable=SC2016
	bad='NF == 6 && $1 > 64 && $5 * 5 > $1 * $3 { print $1 }'
	hold 2000 0
	expect "sizes with more internal waste" -z "$(get "$TABLE" | awk "$bad")"
	note "2000 functions: $(column 5) bytes internal, $(column 6) bytes external waste," \
		"$(total 'Free pages') of $(total Pages) pages in no slab"
	put 200 "$TEST/held"
	note "of which 200 are left: $(column 5) and $(column 6) bytes," \
		"$(total 'Free pages') of $(total Pages) pages"
	put 0 "$TEST/held"
}

test_memory_goes_back() {
	load_test
	# One of them may hold nothing, and others have room.
	before=$(total Blocks)
	hold 1000 4096
	expect "blocks" "$(total Blocks)" -ge $((before + 13))
	put 0 "$TEST/held"
	expect "blocks that are kept" "$(total Blocks)" -le $((before + 1))
	echo 2 > /proc/sys/vm/drop_caches
	wait_for 60 blocks_are_at_most "$before" ||
		fail "$(total Blocks) blocks are left after dropping caches, expected $before"
}

test_threads() {
	load_test
	before=$(in_use)
	"$HERE/memory_hog" 64 5 > /dev/null &
	hog=$!
	(while kill -0 "$hog"; do echo 2 > /proc/sys/vm/drop_caches; done) 2> /dev/null &
	error=$(error_of 8 "$TEST/stress")
	kill "$hog" 2> /dev/null
	wait
	[ -z "$error" ] || fail "8 threads: $error; $(get "$TEST/result" | head -n 1)"
	expect "pieces in use" "$(in_use)" = "$before"
}

# Each allocation that a jit_alloc() makes fails once.
test_allocations_fail() {
	[ -w "$FAILSLAB/ignore-gfp-wait" ] || skip "no CONFIG_FAILSLAB"
	load_test
	before=$(in_use)
	put N "$FAILSLAB/ignore-gfp-wait"
	failed=0
	for len in 64 4096 8192; do
		put "$len" "$TEST/len"
		nth=0
		succeeded=0
		# So many allocations are not made.
		while [ $succeeded -lt 4 ]; do
			nth=$((nth + 1))
			echo 2 > /proc/sys/vm/drop_caches
			held=$(get "$TEST/held")
			sh -c "echo $nth > /proc/self/fail-nth; echo $((held + 1)) > $TEST/held" \
				2> /dev/null
			if [ "$(get "$TEST/held")" -gt "$held" ]; then
				succeeded=$((succeeded + 1))
			else
				failed=$((failed + 1))
			fi
			expect "wrong functions after failure $nth" "$(get "$TEST/wrong")" -eq 0
		done
		drop "$before"
	done
	expect "calls that failed" "$failed" -gt 5
}

# The programs are in the table, and leave it.
test_bpf_programs() {
	[ -x "$HERE/bpf_load" ] || skip "no bpf_load"
	[ -e "$TABLE" ] || skip "no $TABLE"
	[ "$(cat "$JIT_ENABLE" 2> /dev/null || echo 1)" -gt 0 ] || skip "the BPF JIT is off"
	before=$(in_use)
	programs=1000
	is_debug_kernel && programs=200
	# shellcheck disable=SC2016
	sum='NF == 6 { sum += $3 } END { print sum }'
	seen=$("$HERE/bpf_load" $programs awk "$sum" "$TABLE") ||
		fail "cannot load $programs programs: $seen"
	expect "pieces in use" "$(echo "$seen" | tail -n 1)" -ge $programs
	nothing_is_left "$before"
}

# Programs of more than a page share 2 MiB, which stay for the next ones.
test_large_bpf_programs() {
	[ -x "$HERE/bpf_load" ] || skip "no bpf_load"
	[ "$(cat "$JIT_ENABLE" 2> /dev/null || echo 1)" -gt 0 ] || skip "the BPF JIT is off"
	before=$(in_use)
	loads="100x5 40x20 20x64"
	is_debug_kernel && loads="20x5 10x20 5x64"
	for load in $loads; do
		echo 2 > /proc/sys/vm/drop_caches
		pages=$(total "Large pages")
		seen=$("$HERE/bpf_load" "$load" cat "$TABLE") ||
			fail "cannot load $load KiB: $seen"
		grown=$(echo "$seen" | awk -F ': *' -v before="$pages" \
			'$1 == "Large pages" { print $2 - before }')
		count=$(echo "$seen" | awk -F ': *' '$1 == "Large" { print $2 }')
		waste=$(echo "$seen" | awk -F ': *' '$1 == "Large waste" { print $2 }')
		expect "$load: large pieces" "$count" -ge "${load%x*}"
		expect "$load: pages of areas" "$grown" -le 1024
		expect "$load: wasted bytes" "$waste" -lt $((64 * count))
	done
	nothing_is_left "$before"
}

# run_test_bpf PARAMETERS...: the kernel's own tests of the JIT. It has to load.
run_test_bpf() {
	module=$HERE/test_bpf.ko
	[ -e "$module" ] || module=$(modprobe -D test_bpf 2> /dev/null | sed 's/^insmod //')
	[ -n "$module" ] || skip "no test_bpf.ko (CONFIG_TEST_BPF=m)"
	[ ! -w "$JIT_ENABLE" ] || put 1 "$JIT_ENABLE"
	mark_log "test_bpf $*"
	# It says nothing for minutes, as a guest that hangs.
	(while sleep 20; do echo "test_bpf is running" > /dev/kmsg; done) &
	signs=$!
	# shellcheck disable=SC2086
	error=$(insmod $module "$@" 2>&1)
	kill "$signs"
	rmmod test_bpf 2> /dev/null
	log=$(log_since "test_bpf $*" | sed -n 's/.*test_bpf: //p')
	note "$(echo "$log" | grep Summary)"
	[ -z "$error" ] || fail "test_bpf $*: $error
$(echo "$log" | grep FAIL)"
	echo "$log" | grep Summary | grep -qv ' 0 FAILED' && fail "$(echo "$log" | grep FAIL)"
	echo "$log" | grep -q "Summary: .*\[[1-9][0-9]*/[0-9]* JIT'ed" || fail "nothing was JITed"
}

nothing_is_left() {
	[ ! -e "$TABLE" ] || wait_for 60 in_use_is "$1" ||
		fail "$(in_use) pieces are in use, expected $1"
}

# They run without JITALLOC as well. All of them take minutes.
test_test_bpf() {
	[ ! -e "$TABLE" ] || before=$(in_use)
	last=749
	is_debug_kernel && last=149
	run_test_bpf test_suite=test_bpf test_range=0,$last
	run_test_bpf test_suite=test_tail_calls
	nothing_is_left "$before"
}

# Only if it is asked for.
test_all_of_test_bpf() {
	[ ! -e "$TABLE" ] || before=$(in_use)
	run_test_bpf
	nothing_is_left "$before"
}

test_log() { expect_clean_log; }

OLD_WAIT=
OLD_JIT=
begin
mount_debugfs
[ ! -w "$FAILSLAB/ignore-gfp-wait" ] || OLD_WAIT=$(get "$FAILSLAB/ignore-gfp-wait")
[ ! -w "$JIT_ENABLE" ] || OLD_JIT=$(get "$JIT_ENABLE")
if [ ! -e "$TABLE" ]; then
	note "no $TABLE (CONFIG_JITALLOC)"
	run test_bpf log
	exit
fi
run table functions_of_every_length freed_text_traps mistakes_do_no_harm \
	flushes_after_a_free waste_is_bounded memory_goes_back threads allocations_fail \
	bpf_programs large_bpf_programs test_bpf log
