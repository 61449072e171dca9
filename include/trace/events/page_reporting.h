/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM page_reporting

#if !defined(_TRACE_PAGE_REPORTING_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_PAGE_REPORTING_H

#include <linux/tracepoint.h>

/* A pass over all zones begins; @order is the smallest order reported. */
TRACE_EVENT(page_reporting_begin,

	TP_PROTO(unsigned int order),

	TP_ARGS(order),

	TP_STRUCT__entry(
		__field(unsigned int, order)
	),

	TP_fast_assign(
		__entry->order = order;
	),

	TP_printk("order=%u", __entry->order)
);

/* The pass has ended; @again tells that another one was queued. */
TRACE_EVENT(page_reporting_end,

	TP_PROTO(unsigned long pages, bool again),

	TP_ARGS(pages, again),

	TP_STRUCT__entry(
		__field(unsigned long, pages)
		__field(bool, again)
	),

	TP_fast_assign(
		__entry->pages = pages;
		__entry->again = again;
	),

	TP_printk("pages=%lu again=%d", __entry->pages, __entry->again)
);

/* The driver was called with @entries blocks, and returned @error. */
TRACE_EVENT(page_reporting_report,

	TP_PROTO(unsigned int entries, unsigned long pages, int error),

	TP_ARGS(entries, pages, error),

	TP_STRUCT__entry(
		__field(unsigned int, entries)
		__field(unsigned long, pages)
		__field(int, error)
	),

	TP_fast_assign(
		__entry->entries = entries;
		__entry->pages = pages;
		__entry->error = error;
	),

	TP_printk("entries=%u pages=%lu error=%d",
		  __entry->entries, __entry->pages, __entry->error)
);

#endif /* _TRACE_PAGE_REPORTING_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
