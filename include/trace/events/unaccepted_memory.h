/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM unaccepted_memory

#if !defined(_TRACE_UNACCEPTED_MEMORY_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_UNACCEPTED_MEMORY_H

#include <linux/tracepoint.h>

/*
 * Of the 2 MiB at @start the pages @from up to @to, of 4K each, were accepted
 * with interrupts off, in @took ns.
 */
TRACE_EVENT(unaccepted_accept,

	TP_PROTO(u64 start, unsigned int from, unsigned int to, u64 took),

	TP_ARGS(start, from, to, took),

	TP_STRUCT__entry(
		__field(u64, start)
		__field(unsigned int, from)
		__field(unsigned int, to)
		__field(u64, took)
	),

	TP_fast_assign(
		__entry->start = start;
		__entry->from = from;
		__entry->to = to;
		__entry->took = took;
	),

	TP_printk("start=0x%llx from=%u to=%u took=%llu",
		  __entry->start, __entry->from, __entry->to, __entry->took)
);

/*
 * An allocation accepted memory, or waited for others that do, for @took ns;
 * @must tells that its zone had nothing else.
 */
TRACE_EVENT(unaccepted_stall,

	TP_PROTO(u64 took, bool must),

	TP_ARGS(took, must),

	TP_STRUCT__entry(
		__field(u64, took)
		__field(bool, must)
	),

	TP_fast_assign(
		__entry->took = took;
		__entry->must = must;
	),

	TP_printk("took=%llu must=%d", __entry->took, __entry->must)
);

#endif /* _TRACE_UNACCEPTED_MEMORY_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
