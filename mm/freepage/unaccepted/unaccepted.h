/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Unaccepted memory: what mm/page_alloc.c, the C glue and the Rust code of
 * mm/freepage/unaccepted share.
 */
#ifndef _MM_FREEPAGE_UNACCEPTED_H
#define _MM_FREEPAGE_UNACCEPTED_H

#include <linux/jump_label.h>
#include <linux/mmzone.h>
#include <linux/pageblock-flags.h>

#ifdef CONFIG_UNACCEPTED_MEMORY_RUST

struct efi_unaccepted_memory;

/*
 * A block is a pageblock. On zone->unaccepted_pages there are runs of
 * MAX_PAGE_ORDER, as ever; one is taken apart when its first block is needed.
 */
enum { UNACCEPTED_BLOCK_ORDER = pageblock_order };

/* No longer true once everything that is online has been accepted. */
DECLARE_STATIC_KEY_TRUE(unaccepted_left);

/* The mode on_alloc, until everything that is online has been accepted */
DECLARE_STATIC_KEY_FALSE(unaccepted_on_alloc);

/**
 * enum unaccepted_why - on whose behalf memory is accepted
 * @UNACCEPTED_BOOT: boot
 * @UNACCEPTED_ALLOCATION: an allocation that found its zone short
 * @UNACCEPTED_BACKGROUND: the background
 * @UNACCEPTED_REQUEST: the file "accept", and accept_memory=eager
 */
enum unaccepted_why {
	UNACCEPTED_BOOT,
	UNACCEPTED_ALLOCATION,
	UNACCEPTED_BACKGROUND,
	UNACCEPTED_REQUEST,
};

/**
 * enum unaccepted_stat - what /sys/kernel/mm/unaccepted/ shows
 * @UNACCEPTED_BYTES: bytes accepted; plus the enum unaccepted_why
 * @UNACCEPTED_CALLS_4K: calls for 4 KiB that succeeded
 * @UNACCEPTED_CALLS_2M: calls for 2 MiB that did
 * @UNACCEPTED_IN_VAIN: calls that did not
 * @UNACCEPTED_WAITS: units that another CPU was at
 * @UNACCEPTED_STALL: longest stall of an allocation, in ns
 * @UNACCEPTED_SECTION: longest time with interrupts off, in ns
 * @UNACCEPTED_STALLS: stalls of so many µs; plus the binary logarithm of that
 */
enum unaccepted_stat {
	UNACCEPTED_BYTES,
	UNACCEPTED_CALLS_4K = UNACCEPTED_BYTES + UNACCEPTED_REQUEST + 1,
	UNACCEPTED_CALLS_2M,
	UNACCEPTED_IN_VAIN,
	UNACCEPTED_WAITS,
	UNACCEPTED_STALL,
	UNACCEPTED_SECTION,
	UNACCEPTED_STALLS,
};

#define UNACCEPTED_STALL_BUCKETS	20

/* mm/freepage/unaccepted/glue.c, for mm/page_alloc.c */
bool unaccepted_pending(struct zone *zone);
bool unaccepted_add(struct page *page);
bool unaccepted_may_be_free(void);
void __unaccepted_allocated(struct page *page, unsigned int order, gfp_t gfp);

/**
 * unaccepted_allocated - pages have been allocated, and nothing touched them yet
 * @page: the first one
 * @order: order of the block
 * @gfp: flags of the allocation
 *
 * In the mode on_alloc they are accepted now.
 *
 * Context: any but NMI; see also alloc_nolock_allowed().
 */
static inline void unaccepted_allocated(struct page *page, unsigned int order, gfp_t gfp)
{
	if (static_branch_unlikely(&unaccepted_on_alloc))
		__unaccepted_allocated(page, order, gfp);
}

/* mm/page_alloc.c, for mm/freepage/unaccepted/glue.c */
void unaccepted_account(struct zone *zone, long nr_pages);
void unaccepted_free_block(struct page *page, bool zeroed);

/* mm/freepage/unaccepted/glue.c, for mm/freepage/unaccepted/view.rs */
struct efi_unaccepted_memory *unaccepted_table(void);
u64 unaccepted_phys_limit(void);
bool unaccepted_is_tdx(void);
u64 unaccepted_call(phys_addr_t start, bool large);
void unaccepted_fail(phys_addr_t start, bool large, u64 status);
unsigned long unaccepted_irq_save(void);
void unaccepted_irq_restore(unsigned long flags);
u64 unaccepted_clock(void);
bool unaccepted_may_sleep(void);
bool unaccepted_booting(void);
void unaccepted_relax(unsigned int time, bool may_sleep);
void unaccepted_breathe(bool may_sleep);
struct page *unaccepted_take(struct zone *zone);
struct page *unaccepted_take_node(int nid);
phys_addr_t unaccepted_block(struct page *page, unsigned long *size);
void unaccepted_landed(struct page *page, bool zeroed);
unsigned int unaccepted_in_flight(struct zone *zone);
unsigned int unaccepted_nr_landed(struct zone *zone);
void unaccepted_wait(struct zone *zone, unsigned int before);
void unaccepted_unit_done(void);
int unaccepted_node(phys_addr_t start);
bool unaccepted_is_free(void);

/* mm/freepage/unaccepted/view.rs */
bool unaccepted_check(u64 address, const struct efi_unaccepted_memory *header);
bool unaccepted_replenish(struct zone *zone, long shortage, bool must,
			  bool may_sleep);
void unaccepted_accept_block(struct page *page, enum unaccepted_why why);
bool unaccepted_accept_allocated(phys_addr_t start, unsigned long size,
				 bool may_sleep);
void unaccepted_search_anew(void);
bool unaccepted_advance(int nid, enum unaccepted_why why);
u64 unaccepted_pause(u64 bytes, u64 took, unsigned int share, unsigned int rate);
void unaccepted_finish(void);
u64 unaccepted_stat(unsigned int stat);
unsigned long unaccepted_count(void);

#else

static inline bool unaccepted_may_be_free(void)
{
	return false;
}

static inline void unaccepted_allocated(struct page *page, unsigned int order, gfp_t gfp)
{
}

#endif /* CONFIG_UNACCEPTED_MEMORY_RUST */

#endif /* _MM_FREEPAGE_UNACCEPTED_H */
