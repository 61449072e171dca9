#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Modules, kprobes and BPF with text outside the direct map: it cannot be read
# there, the direct map keeps its large mappings when text comes and goes, nothing
# is writable and executable, and memory that is not in use is given back.

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"
# shellcheck source=/dev/null
. "$(dirname "$0")/unmapped_lib.sh"

STATE=/sys/kernel/debug/execmem
SELF=/sys/kernel/debug/execmem_test
PAGE_TABLES=/sys/kernel/debug/page_tables/kernel
EVENTS=/sys/kernel/tracing/kprobe_events
MODULES="$HERE/test_module"

# state ROW: KiB, of all nodes.
state() { get "$STATE" | awk -v row="$1:" '$1 == row { sum += $2 } END { print sum + 0 }'; }

is() { [ "$(state "$1")" -eq "$2" ]; }
used_at_most() { [ "$(state Used)" -le "$1" ]; }

# Memory that was freed is not overwritten at once if somebody else writes text.
settle_text() { wait_for 30 is Pending 0 || fail "$(state Pending) kB are still pending"; }

# give_back: until nothing is idle.
give_back() {
	settle_text
	for _ in 1 2 3 4 5 6; do
		echo 3 > /proc/sys/vm/drop_caches
		wait_for 1 is Idle 0 && wait_for 1 free_pages_are 0 && return
	done
	fail "$(state Idle) kB are idle after dropping caches"
}

# A negative number unloads them.
modules() {
	"$HERE/module_load" "$1" "$MODULES/text_10.ko" "$MODULES/text_90.ko" \
		"$MODULES/text_170.ko" > /dev/null || fail "cannot load or unload $1 modules"
}

large_module() {
	"$HERE/module_load" "$1" "$MODULES/text_2200.ko" > /dev/null ||
		fail "cannot load or unload a module of 2200 KiB"
}

need_modules() {
	[ -e "$MODULES/text_10.ko" ] || skip "text_10.ko was not built for this kernel"
}

# Executable memory of modules that is also writable, as page tables have it.
writable_text() {
	awk '/^---\[/ { modules = /Modules/ } modules && / RW / && / x /' "$PAGE_TABLES"
}

expect_no_writable_text() {
	[ -e "$PAGE_TABLES" ] || return
	found=$(writable_text)
	[ -z "$found" ] || fail "writable and executable: $found"
}

# KiB of text of modules that are mapped by entries of 2 MiB, and all of them.
mapped_text() {
	awk '
		/^---\[/ { modules = /Modules/ }
		modules && / x / {
			unit = substr($2, length($2))
			size = $2 * (unit == "G" ? 1048576 : unit == "M" ? 1024 : 1)
			all += size
			large += $NF == "pmd" ? size : 0
		}
		END { printf "%d %d\n", large, all }' "$PAGE_TABLES"
}

test_state() {
	expect "mode" "$(stat -c %a "$STATE")" = 444
	expect "rows" "$(get "$STATE" | sed -n '2,9s/:.*//p' | tr '\n' ' ')" = \
		"Text Large Aliased Rodata Used Pending Idle Hole "
}

test_text_is_not_in_the_direct_map() {
	insmod "$MODULES/execmem_test.ko" || skip "execmem_test.ko was not built"
	expect "pages of text that can be read" "$(get $SELF/text/readable)" -eq 0
	expect "... that cannot" "$(get $SELF/text/unreadable)" -gt 0
	expect "pages of read-only data that can be read" \
		"$(get $SELF/rodata/readable)" -eq 0
	expect "... that cannot" "$(get $SELF/rodata/unreadable)" -gt 0
	# Else nothing is proven by the above.
	expect "pages of data that can be read" "$(get $SELF/data/readable)" -gt 0
	rmmod execmem_test
}

# Idle areas are pages in use to whoever isolates memory: before that they are gone.
test_offline_gives_idle_text_back() {
	need_modules
	block=$(movable_blocks | head -n 1)
	[ -n "$block" ] || skip "no memory block in zone Movable"
	modules 50
	modules -50
	settle_text
	expect "KiB of idle text" "$(state Idle)" -gt 0
	error=$(offline "$block")
	[ -z "$error" ] || fail "$block does not go offline: $error"
	idle=$(state Idle)
	put online_movable "$block/state"
	expect "KiB of idle text when memory is offline" "$idle" -eq 0
}

# Half of the 50 modules are unloaded in between, so that holes are used again.
test_modules_split_nothing() {
	need_modules
	give_back
	echo 1 > /proc/sys/vm/compact_memory
	small=$(($(state Text) - $(state Large)))
	free=$(free_bytes 9)
	pmds=$(vm direct_map_level2_splits)
	puds=$(vm direct_map_level3_splits)
	modules 50
	expect_no_writable_text
	used=$(state Used)
	modules -25
	modules 25
	settle_text
	expect "KiB in use" "$(state Used)" -eq "$used"
	[ ! -e "$PAGE_TABLES" ] || note "KiB of text on 2M mappings, and all: $(mapped_text)"
	small=$(($(state Text) - $(state Large) - small))
	pmds=$(($(vm direct_map_level2_splits) - pmds))
	puds=$(($(vm direct_map_level3_splits) - puds))
	modules -50
	if [ "$small" -gt 0 ]; then
		[ "$free" -lt 268435456 ] ||
			fail "$small KiB of text in pieces, with $free bytes free in blocks"
		skip "$small KiB of text are not in blocks of 2 MiB"
	fi
	# To take 2 MiB out of 1 GiB, that has to be split.
	note "PUD splits: $puds"
	expect "PMD splits" "$pmds" -eq 0
}

# What is in whole blocks is mapped so when modules are loaded.
test_large_mappings() {
	need_modules
	[ -e "$PAGE_TABLES" ] || skip "no $PAGE_TABLES"
	modules 10
	settle_text
	mapped=$(mapped_text)
	large=$(state Large)
	modules -10
	expect "KiB of text on 2M mappings" "${mapped% *}" -ge "$large"
}

test_more_than_2_mib() {
	need_modules
	give_back
	text=$(state Text)
	large_module 1
	expect "KiB of text" $(($(state Text) - text)) -ge 2200
	expect_no_writable_text
	large_module -1
	settle_text
}

# The direct map is as it was before the modules came.
test_memory_is_given_back() {
	need_modules
	give_back
	text=$(state Text)
	rodata=$(state Rodata)
	used=$(state Used)
	unmapped=$(mem Unmapped)
	before=$(direct_map)
	modules 50
	large_module 1
	note "before: $text kB of text, $before"
	note "in use: $(state Text) kB of text, $(direct_map)"
	large_module -1
	modules -50
	settle_text
	expect "KiB in use" "$(state Used)" -eq "$used"
	give_back
	expect "KiB of text" "$(state Text)" -eq "$text"
	expect "KiB of read-only data" "$(state Rodata)" -eq "$rodata"
	wait_for 5 direct_map_is "$before" ||
		fail "the direct map was $before, and is $(direct_map)"
	expect "KiB outside the direct map" "$(mem Unmapped)" -eq "$unmapped"
}

# Text is in small pieces, and the direct map whole again when they are gone.
test_fragmented_memory() {
	need_modules
	give_back
	before=$(direct_map)
	trap defragment EXIT
	fragment 0 || skip "memory cannot be fragmented: build freepage_test.ko and HUGETLBFS"
	small=$(($(state Text) - $(state Large)))
	modules 100
	expect_no_writable_text
	small=$(($(state Text) - $(state Large) - small))
	note "in use: $small kB in pieces, $(direct_map)"
	expect "KiB in pieces" "$small" -gt 0
	modules -100
	trap - EXIT
	defragment
	give_back
	wait_for 5 direct_map_is "$before" ||
		fail "the direct map was $before, and is $(direct_map)"
}

# load_all ROUNDS: modules, kprobes and BPF programs.
load_all() {
	rounds=$1
	is_debug_kernel && rounds=$(($1 / 2))
	for _ in $(seq "$rounds"); do
		modules 12
		probe_loop 3
		"$HERE/bpf_load" 20 true > /dev/null || fail "cannot load BPF programs"
		modules -12
	done
}

# probe_loop ROUNDS: on an instruction in the middle, which is copied to a slot.
probe_loop() {
	[ -w "$EVENTS" ] || return
	for _ in $(seq "$1"); do
		for probe in p:execmem/sleep r:execmem/slept; do
			echo "$probe __x64_sys_nanosleep" >> "$EVENTS" ||
				fail "cannot probe nanosleep(2)"
		done
		put 1 /sys/kernel/tracing/events/execmem/enable
		sleep 0.01
		put 0 /sys/kernel/tracing/events/execmem/enable
		# Not those of others.
		for probe in sleep slept; do
			echo "-:execmem/$probe" >> "$EVENTS" || fail "cannot remove a probe"
		done
	done
}

test_loads_in_parallel() {
	need_modules
	used=$(state Used)
	load_all 6 > /tmp/execmem.out &
	loader=$!
	while kill -0 "$loader" 2> /dev/null; do
		echo 2 > /proc/sys/vm/drop_caches
		expect_no_writable_text
	done
	wait "$loader" || fail "$(cat /tmp/execmem.out)"
	rm -f /tmp/execmem.out
	settle_text
	# A page for the slots of kprobes may stay, and one for BPF.
	wait_for 60 used_at_most $((used + 8)) ||
		fail "$used kB were in use before, $(state Used) kB after"
}

# A process takes and frees a half of what is free, again and again.
test_memory_pressure() {
	need_modules
	kills=$(vm oom_kill)
	load_all 4 > /tmp/execmem.out &
	loader=$!
	while kill -0 "$loader" 2> /dev/null; do
		"$HERE/memory_hog" $(($(mem MemFree) / 2048)) 0 thp > /dev/null
		echo 3 > /proc/sys/vm/drop_caches
	done
	wait "$loader" || fail "$(cat /tmp/execmem.out)"
	rm -f /tmp/execmem.out
	expect "processes killed" "$(vm oom_kill)" -eq "$kills"
}

test_log() { expect_clean_log; }

begin
mount_debugfs
[ -e "$STATE" ] || {
	ktap_skip_all "no $STATE (CONFIG_EXECMEM_RUST)"
	exit "$KSFT_SKIP"
}
grep -q ' /sys/kernel/tracing tracefs ' /proc/mounts ||
	mount -t tracefs none /sys/kernel/tracing 2> /dev/null
run state text_is_not_in_the_direct_map offline_gives_idle_text_back \
	modules_split_nothing large_mappings \
	more_than_2_mib memory_is_given_back fragmented_memory loads_in_parallel \
	memory_pressure log
