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
 *
 * What is done to free pages is an enum freepage_treatment. Each has its own
 * state, and nothing in here depends on which it is.
 */
#ifndef _MM_FREEPAGE_H
#define _MM_FREEPAGE_H

#include <linux/irq_work.h>
#include <linux/jump_label.h>
#include <linux/mmzone.h>
#include <linux/workqueue.h>

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
 * struct freepage_map - what a treatment knows of a zone
 * @start_pfn: first page; aligned to MAX_ORDER_NR_PAGES and to a chunk
 * @nr_chunks: number of @chunks
 * @chunks: what is known about the pages
 * @nr_pending: number of groups that are pending
 * @cursor: group at which the next pass starts
 * @notified: blocks put on free lists since the last pass
 * @requested: a pass was requested, and has not got to this zone yet
 *
 * Hangs off zone->freepage_maps. The pointer and all it leads to are protected
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
 * @migratetype: of its first pageblock
 * @isolated: whether that is isolated, by memory hotplug for instance: then the
 *            block must stay where it is
 */
struct freepage_block {
	struct page *page;
	unsigned long pfn;
	unsigned int order;
	int migratetype;
	bool isolated;
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

#ifdef CONFIG_FREEPAGE

/**
 * struct freepage_trigger - what makes a treatment ask for a pass
 * @order: order of the smallest block that is worth it
 * @batch: how many such blocks, put on the free lists of a zone, are
 * @request: asks for it
 */
struct freepage_trigger {
	unsigned int order;
	unsigned int batch;
	struct irq_work request;
};

extern struct freepage_trigger freepage_triggers[NR_FREEPAGE_TREATMENTS];

/* Hooks of mm/page_alloc.c; zone->lock is held, interrupts are off. */

DECLARE_STATIC_KEY_FALSE(freepage_key);

/* The smallest of all orders in freepage_triggers */
extern unsigned int freepage_least_order;

/* Pages of each zone that treatments have taken off the free lists; by zone->lock */
extern unsigned long freepage_off[MAX_NUMNODES][MAX_NR_ZONES];

void __freepage_notify(struct zone *zone, unsigned long pfn, unsigned int order,
		       bool untouched);

/**
 * freepage_tracking - whether the other hooks are to be called
 *
 * To be asked first: the no-op that a hook costs while nothing is tracked.
 *
 * Return: true if the pages of some zone are tracked.
 */
static inline bool freepage_tracking(void)
{
	return static_branch_unlikely(&freepage_key);
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
 * @untouched: it had been free, but what it merged with may want treatment, and so
 *	may what was freed before others took it off the list
 */
static inline void freepage_notify(struct zone *zone, unsigned long pfn,
				   unsigned int order, bool untouched)
{
	if (order >= READ_ONCE(freepage_least_order))
		__freepage_notify(zone, pfn, order, untouched);
}

/* mm/page_alloc.c: the free lists. The first two with zone->lock held. */
void freepage_isolate(struct zone *zone, const struct freepage_block *block,
		      const struct freepage_run *part);
void freepage_put_back(struct zone *zone, const struct freepage_run *blocks,
		       unsigned long nr);
int freepage_drain(struct zone *zone, int cpu, int keep);

/* mm/freepage/glue.c, for mm/freepage/zone.rs */
struct zone *freepage_first_zone(void);
void freepage_lock(struct zone *zone);
void freepage_unlock(struct zone *zone);
bool freepage_find(struct zone *zone, unsigned long pfn, unsigned long floor,
		   struct freepage_block *block);
bool freepage_online(struct zone *zone, unsigned long pfn);
unsigned long freepage_section_pages(void);
void freepage_get_online_mems(void);
void freepage_put_online_mems(void);
unsigned long freepage_spare(struct zone *zone);
unsigned long freepage_nr_off(struct zone *zone);
bool freepage_has_page(struct zone *zone, unsigned long pfn);
int freepage_excess(struct zone *zone);
void freepage_drain_zone(struct zone *zone, bool all);
void freepage_track(enum freepage_treatment treatment, bool track);

/* mm/freepage/glue.c, for treatments */
void freepage_init_work(enum freepage_treatment treatment, struct delayed_work *work);

/* mm/freepage/glue.c, for mm/freepage/primitives.rs */
void freepage_cond_resched(void);
bool freepage_freezing(void);
bool freepage_nr_allocated(unsigned long *pages);
void freepage_set_order(enum freepage_treatment treatment, unsigned int order);
void freepage_queue(enum freepage_treatment treatment, unsigned int delay_ms,
		    bool again);
void freepage_sync(enum freepage_treatment treatment);
void freepage_cancel(enum freepage_treatment treatment);

/* mm/freepage/freepage.rs, for mm/freepage/glue.c */
void freepage_init(void);
void freepage_request(enum freepage_treatment treatment);
void freepage_pass(enum freepage_treatment treatment);

/* mm/freepage/zone.rs, for mm/freepage/glue.c */
void freepage_memory_online(unsigned long pfn, unsigned long nr_pages);
void freepage_memory_offline(unsigned long pfn, unsigned long nr_pages);

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
				   unsigned int order, bool untouched)
{
}

#endif /* CONFIG_FREEPAGE */

#endif /* _MM_FREEPAGE_H */
