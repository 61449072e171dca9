/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The unmapped page allocator: what mm/page_alloc.c, the C glue and the Rust
 * code of mm/freepage/unmapped share.
 */
#ifndef _MM_FREEPAGE_UNMAPPED_H
#define _MM_FREEPAGE_UNMAPPED_H

#include <linux/jump_label.h>
#include <linux/mmzone.h>
#include <linux/pgtable.h>

#ifdef CONFIG_UNMAPPED_ALLOC

DECLARE_STATIC_KEY_FALSE(unmapped_alloc_used);

/**
 * unmapped_alloc_in_use - whether there are unmapped pages
 *
 * To be asked before unmapped_alloc_free(): a no-op until unmapped_alloc_enable().
 * With EXECMEM_RUST or GFP_UNMAPPED it says so from boot on.
 *
 * Return: true from unmapped_alloc_enable() on.
 */
static inline bool unmapped_alloc_in_use(void)
{
	return static_branch_unlikely(&unmapped_alloc_used);
}

void unmapped_alloc_free(struct page *page, unsigned int order);

/**
 * unmapped_alloc_may_have - whether a page may be outside the direct map
 * @page: any page
 *
 * Context: any.
 * Return: true for all pages of a pageblock that has unmapped ones.
 */
static inline bool unmapped_alloc_may_have(const struct page *page)
{
	return unmapped_alloc_in_use() &&
		get_pfnblock_bit(page, page_to_pfn(page), PB_unmapped);
}

/* mm/freepage/unmapped/glue.c, for mm/page_alloc.c */
struct page *unmapped_frozen_pages_alloc(gfp_t gfp, unsigned int order, int nid,
					 nodemask_t *nodes);

/* mm/freepage/unmapped/glue.c, for mm/freepage/execmem/glue.c */
struct page *unmapped_pages_alloc_limited_noprof(gfp_t gfp, unsigned int order,
						 unsigned int largest);
#define unmapped_pages_alloc_limited(...) \
	alloc_hooks(unmapped_pages_alloc_limited_noprof(__VA_ARGS__))

/* mm/page_alloc.c */
void unmapped_page_adopt(struct page *page, unsigned int order);
void unmapped_page_hand_out(struct page *page, unsigned int order, gfp_t gfp);
void unmapped_page_release(struct page *page, unsigned int order);
void unmapped_page_give_back(struct page *page, unsigned int order);

/**
 * struct unmapped_run - an aligned block of pages
 * @pfn: first page frame number; ULONG_MAX for none
 * @order: order of the block
 */
struct unmapped_run {
	unsigned long pfn;
	unsigned int order;
};

/**
 * struct unmapped_lists - the free lists of a node's cache
 * @free: one for each order; pages are linked by page->buddy_list
 */
struct unmapped_lists {
	struct list_head free[NR_PAGE_ORDERS];
};

/**
 * struct unmapped_stats - what debugfs shows of a node
 * @free: free blocks of each order
 * @cached: blocks of each order that were taken out of the direct map, ever
 * @released: blocks of each order that were given back, ever
 */
struct unmapped_stats {
	unsigned long free[NR_PAGE_ORDERS];
	unsigned long cached[NR_PAGE_ORDERS];
	unsigned long released[NR_PAGE_ORDERS];
};

enum unmapped_event {
	UNMAPPED_EVENT_REFILL,
	UNMAPPED_EVENT_REFILL_FAIL,
	UNMAPPED_EVENT_SPLIT,
	UNMAPPED_EVENT_RELEASE,
};

/* mm/freepage/unmapped/glue.c, for pages.rs */
struct unmapped_lists *unmapped_lists_alloc(int nid);
void unmapped_list_add(struct unmapped_lists *lists, unsigned long pfn, unsigned int order);
void unmapped_list_del(unsigned long pfn);
unsigned long unmapped_list_first(const struct unmapped_lists *lists, unsigned int order);
int unmapped_list_order(unsigned long pfn, int nid);
unsigned long unmapped_block_alloc(gfp_t gfp, nodemask_t *nodes, int nid,
				   unsigned int order, unsigned int wanted);
void unmapped_block_free(unsigned long pfn, unsigned int order);
int unmapped_unmap(unsigned long pfn, unsigned int order);
int unmapped_restore(unsigned long pfn, unsigned int order, pte_t **table);
void unmapped_collapse(unsigned long pfn, unsigned int order);
pte_t *unmapped_table_alloc(void);
void unmapped_table_free(pte_t *table);
void unmapped_clear(unsigned long pfn, unsigned int order);
bool unmapped_is_poisoned(unsigned long pfn);
bool unmapped_is_leaving(unsigned long pfn);
void unmapped_mark(unsigned long pfn, unsigned int order, bool unmapped);
int unmapped_nid(unsigned long pfn);
void unmapped_count(int nid, long total, long free);
void unmapped_event(enum unmapped_event event);
unsigned int unmapped_pageblock_order(void);
struct unmapped_run unmapped_next_pending(void);
unsigned long unmapped_nr_pending(int nid);
void unmapped_give_back(unsigned long pfn, unsigned int order);
void unmapped_queue_collapse(void);
bool unmapped_may_wait(gfp_t gfp);
void unmapped_cond_resched(void);
unsigned int unmapped_possible_nodes(void);

/* mm/freepage/unmapped/unmapped_alloc.rs, for glue.c */
int unmapped_alloc_init(void);
unsigned long unmapped_alloc_take(int nid, unsigned int order);
unsigned long unmapped_alloc_refill(gfp_t gfp, nodemask_t *nodes, int nid,
				    unsigned int order, unsigned int largest);
void unmapped_alloc_drain(void);
void unmapped_alloc_collapse(void);
void unmapped_alloc_release_all(int nid);
unsigned long unmapped_alloc_age(int nid);
bool unmapped_alloc_stats(int nid, struct unmapped_stats *stats);

#else

static inline void unmapped_alloc_free(struct page *page, unsigned int order)
{
}

static inline bool unmapped_alloc_may_have(const struct page *page)
{
	return false;
}

static inline struct page *unmapped_frozen_pages_alloc(gfp_t gfp, unsigned int order, int nid,
						       nodemask_t *nodes)
{
	return NULL;
}

#endif /* CONFIG_UNMAPPED_ALLOC */

#endif /* _MM_FREEPAGE_UNMAPPED_H */
