/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Free page treatment: what mm/page_alloc.c, the C glue and the Rust code of
 * mm/freepage share.
 *
 * Hooks in the page allocator, both in __free_one_page() and each a no-op
 * while nothing is treated:
 *
 *   freepage_freed()	a block comes back: its pages have unknown content
 *   freepage_notify()	a block, merged or not, was put on a free list
 *
 * Allocation, expand() and every other split pass no hook: state is kept for
 * each base page outside struct page, so it does not have to follow blocks.
 */
#ifndef _MM_FREEPAGE_H
#define _MM_FREEPAGE_H

#include <linux/jump_label.h>
#include <linux/mmzone.h>
#include <linux/page_reporting.h>
#include <linux/scatterlist.h>

/* A group: pages whose bits share a cache line. */
#define FREEPAGE_GROUP_ORDER	9

/* A chunk: pages whose bits fill 4 KiB, which is BITS_PER_LONG groups. */
#define FREEPAGE_CHUNK_ORDER	15

/**
 * struct freepage_chunk - which pages were freed since their treatment
 * @freed: a bit for each page: freed, and not treated since; means nothing
 *         while the page is allocated. NULL if no memory is there
 * @pending: a bit for each group: may hold a free block worth a treatment
 */
struct freepage_chunk {
	unsigned long *freed;
	unsigned long pending;
};

/**
 * struct freepage_map - the chunks of a zone
 * @start_pfn: first page; aligned to MAX_ORDER_NR_PAGES and to a chunk
 * @nr_chunks: number of @chunks
 * @chunks: what is known about the pages
 * @nr_pending: number of groups that are pending
 * @cursor: group at which the next pass starts
 * @notified: blocks put on free lists since the last pass
 * @requested: a pass was requested, and has not got to this zone yet
 *
 * Hangs off zone->freepage_map. The pointer and all it leads to are protected
 * by zone->lock. A page without a chunk (there was no memory for it when its
 * own memory came online) is not treated.
 */
struct freepage_map {
	unsigned long start_pfn;
	unsigned long nr_chunks;
	struct freepage_chunk *chunks;
	unsigned long nr_pending;
	unsigned long cursor;
	unsigned int notified;
	bool requested;
};

/**
 * struct freepage_block - a block on a free list
 * @page: first page
 * @pfn: its page frame number
 * @order: order of the block
 */
struct freepage_block {
	struct page *page;
	unsigned long pfn;
	unsigned int order;
};

/**
 * struct freepage_run - an aligned run of pages
 * @pfn: its first page
 * @order: order of the run
 */
struct freepage_run {
	unsigned long pfn;
	unsigned int order;
};

/* Hooks of mm/page_alloc.c; zone->lock is held, interrupts are off. */

#ifdef CONFIG_PAGE_REPORTING_RUST
DECLARE_STATIC_KEY_FALSE(freepage_enabled);
extern unsigned int page_reporting_order;

void __freepage_notify(struct zone *zone, unsigned long pfn, unsigned int order);

/**
 * freepage_tracking - whether the other hooks are to be called
 *
 * To be asked first: the no-op that a hook costs while nothing is tracked.
 */
static inline bool freepage_tracking(void)
{
	return static_branch_unlikely(&freepage_enabled);
}

/**
 * freepage_freed - a block of pages comes back to the free lists
 * @zone: zone of the block; its lock is held
 * @pfn: first page
 * @order: order of the block before it merges
 */
void freepage_freed(struct zone *zone, unsigned long pfn, unsigned int order);

/**
 * freepage_notify - a block was put on a free list and may want treatment
 * @zone: zone of the block; its lock is held
 * @pfn: first page
 * @order: order of the block after it merged
 */
static inline void freepage_notify(struct zone *zone, unsigned long pfn,
				   unsigned int order)
{
	if (order >= READ_ONCE(page_reporting_order))
		__freepage_notify(zone, pfn, order);
}
#else
static inline bool freepage_tracking(void)
{
	return false;
}

static inline void freepage_freed(struct zone *zone, unsigned long pfn,
				  unsigned int order)
{
}

static inline void freepage_notify(struct zone *zone, unsigned long pfn,
				   unsigned int order)
{
}
#endif /* CONFIG_PAGE_REPORTING_RUST */

#ifdef CONFIG_FREEPAGE

/* mm/page_alloc.c: the free lists. Called with zone->lock held. */
bool freepage_isolate(struct zone *zone, const struct freepage_block *block);
void freepage_put_back(struct zone *zone, const struct freepage_run *blocks,
		       unsigned long nr);

/* mm/freepage/glue.c, for mm/freepage/zone.rs */
struct zone *freepage_first_zone(void);
void freepage_lock(struct zone *zone);
void freepage_unlock(struct zone *zone);
bool freepage_find(struct zone *zone, unsigned long pfn, unsigned long floor,
		   struct freepage_block *block);
bool freepage_online(struct zone *zone, unsigned long pfn);
unsigned long freepage_spare(struct zone *zone);
bool freepage_has_page(struct zone *zone, unsigned long pfn);
void freepage_drain(struct zone *zone);
void freepage_cond_resched(void);

/* mm/freepage/freepage.rs, for mm/freepage/glue.c */
void freepage_init(void);
void freepage_memory_online(unsigned long pfn, unsigned long nr_pages);
void freepage_memory_offline(unsigned long pfn, unsigned long nr_pages);

#endif /* CONFIG_FREEPAGE */

#ifdef CONFIG_PAGE_REPORTING_RUST

/**
 * enum freepage_reporting_stat - what /sys/kernel/mm/page_reporting/ shows
 * @FREEPAGE_REPORTING_BYTES: bytes reported with success
 * @FREEPAGE_REPORTING_REPORTS: calls of the driver that succeeded
 * @FREEPAGE_REPORTING_FAILURES: calls of the driver that failed
 * @FREEPAGE_REPORTING_PASSES: runs of the worker
 * @FREEPAGE_REPORTING_BACKOFF: current delay between passes in ms if it was
 *	lengthened because the device failed or memory is short, else 0
 * @FREEPAGE_REPORTING_HOLD: longest time the worker held a zone lock, in ns
 */
enum freepage_reporting_stat {
	FREEPAGE_REPORTING_BYTES,
	FREEPAGE_REPORTING_REPORTS,
	FREEPAGE_REPORTING_FAILURES,
	FREEPAGE_REPORTING_PASSES,
	FREEPAGE_REPORTING_BACKOFF,
	FREEPAGE_REPORTING_HOLD,
};

/* mm/freepage/glue.c, for mm/freepage/device.rs */
void freepage_set_enabled(bool enabled);
unsigned int freepage_reporting_delay_ms(void);
unsigned int freepage_reporting_order(unsigned int device_order);
bool freepage_reporting_refused(void);
void freepage_reporting_sync(void);
void freepage_reporting_init_work(struct page_reporting_dev_info *prdev);
void freepage_reporting_queue(struct page_reporting_dev_info *prdev,
			      unsigned int delay_ms);
void freepage_reporting_requeue(struct page_reporting_dev_info *prdev,
				unsigned int delay_ms);
void freepage_set_sgs(struct scatterlist *sgs, const struct freepage_run *runs,
		      unsigned long nr);

/* mm/freepage/device.rs, for mm/freepage/glue.c */
void freepage_reporting_request(void);
void freepage_reporting_work(struct work_struct *work);
void freepage_reporting_order_changed(void);
void freepage_reporting_delay_changed(void);
bool freepage_reporting_is_enabled(void);
int freepage_reporting_set_enabled(bool enabled);
u64 freepage_reporting_stat(enum freepage_reporting_stat stat);
void freepage_reporting_forget(void);

#endif /* CONFIG_PAGE_REPORTING_RUST */

#endif /* _MM_FREEPAGE_H */
