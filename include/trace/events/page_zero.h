/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM page_zero

#if !defined(_TRACE_PAGE_ZERO_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_PAGE_ZERO_H

#include <linux/tracepoint.h>

/*
 * Of the 1 << @order pages at @pfn, which are allocated, @zeroed were known to
 * be zero; @wanted tells that all have to be.
 */
TRACE_EVENT(page_zero_alloc,

	TP_PROTO(unsigned long pfn, unsigned int order, unsigned long zeroed, bool wanted),

	TP_ARGS(pfn, order, zeroed, wanted),

	TP_STRUCT__entry(
		__field(unsigned long, pfn)
		__field(unsigned int, order)
		__field(unsigned long, zeroed)
		__field(bool, wanted)
	),

	TP_fast_assign(
		__entry->pfn = pfn;
		__entry->order = order;
		__entry->zeroed = zeroed;
		__entry->wanted = wanted;
	),

	TP_printk("pfn=0x%lx order=%u zeroed=%lu wanted=%d",
		  __entry->pfn, __entry->order, __entry->zeroed, __entry->wanted)
);

/* The user folio of @order at @pfn did not have to be cleared. */
TRACE_EVENT(page_zero_take,

	TP_PROTO(unsigned long pfn, unsigned int order),

	TP_ARGS(pfn, order),

	TP_STRUCT__entry(
		__field(unsigned long, pfn)
		__field(unsigned int, order)
	),

	TP_fast_assign(
		__entry->pfn = pfn;
		__entry->order = order;
	),

	TP_printk("pfn=0x%lx order=%u", __entry->pfn, __entry->order)
);

/* The zeroer of @nid begins to work: @zeroed pages are zero, and should be @high. */
TRACE_EVENT(page_zero_begin,

	TP_PROTO(int nid, unsigned long zeroed, unsigned long high),

	TP_ARGS(nid, zeroed, high),

	TP_STRUCT__entry(
		__field(int, nid)
		__field(unsigned long, zeroed)
		__field(unsigned long, high)
	),

	TP_fast_assign(
		__entry->nid = nid;
		__entry->zeroed = zeroed;
		__entry->high = high;
	),

	TP_printk("nid=%d zeroed=%lu high=%lu",
		  __entry->nid, __entry->zeroed, __entry->high)
);

/* The zeroer of @nid goes to sleep; it has cleared @cleared pages. */
TRACE_EVENT(page_zero_end,

	TP_PROTO(int nid, unsigned long cleared),

	TP_ARGS(nid, cleared),

	TP_STRUCT__entry(
		__field(int, nid)
		__field(unsigned long, cleared)
	),

	TP_fast_assign(
		__entry->nid = nid;
		__entry->cleared = cleared;
	),

	TP_printk("nid=%d cleared=%lu", __entry->nid, __entry->cleared)
);

#endif /* _TRACE_PAGE_ZERO_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
