// SPDX-License-Identifier: GPL-2.0
/*
 * Free huge pages in the pools of hugetlb that are known to be zero. Whoever
 * takes one of a pool has to clear all of it, so each is worth to be cleared
 * before, whatever the watermarks of free memory say.
 *
 * It is cleared where it is, on the list of the pool: reservations, faults and
 * whoever resizes the pool find all of it at any time. Who takes the very page
 * that is being cleared waits for the 64 KiB that are, and takes it as it is.
 *
 * PG_zeroed on its second page says that a huge page is zero, as for any folio
 * that was just allocated (page_zero.h). A list has those that are zero in front,
 * where they are taken, and the others behind.
 *
 * Lock order: page_zero_node.mutex -> hugetlb_lock -> page_zero_pool.lock.
 */
#include <linux/hugetlb.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/spinlock.h>

#include "page_zero.h"
#include "zeroing.h"

/* Pages cleared during one hold of the lock, with interrupts off: some us */
#define CHUNK_PAGES	(SZ_64K / PAGE_SIZE)

/* Pages cleared in one step */
#define STEP_PAGES	(SZ_2M / PAGE_SIZE)

static bool is_zeroed(struct folio *folio)
{
	return test_bit(PG_zeroed, &folio_page(folio, 1)->flags.f);
}

/* Nobody clears @pool->folio any more. */
static void release(struct page_zero_pool *pool)
{
	lockdep_assert_held(&hugetlb_lock);
	spin_lock(&pool->lock);
	pool->folio = NULL;
	spin_unlock(&pool->lock);
}

/**
 * __page_zero_pool_add - see page_zero_pool_add()
 * @h: size of the pool
 * @folio: the huge page
 */
void __page_zero_pool_add(struct hstate *h, struct folio *folio)
{
	struct page_zero_pool *pool = page_zero_pool(folio_nid(folio));

	lockdep_assert_held(&hugetlb_lock);
	if (!pool)
		folio_forget_zeroed(folio);
	if (is_zeroed(folio))
		pool->zeroed[hstate_index(h)]++;
	else
		list_move_tail(&folio->lru, &h->hugepage_freelists[folio_nid(folio)]);
}

/**
 * __page_zero_pool_del - see page_zero_pool_del()
 * @h: size of the pool
 * @folio: the huge page
 */
void __page_zero_pool_del(struct hstate *h, struct folio *folio)
{
	struct page_zero_pool *pool = page_zero_pool(folio_nid(folio));

	lockdep_assert_held(&hugetlb_lock);
	if (!pool)
		return;
	if (pool->folio == folio)
		release(pool);
	if (is_zeroed(folio))
		pool->zeroed[hstate_index(h)]--;
}

/* The next huge page of a node to be cleared, of the size of @only or of any */
static struct folio *claim(struct page_zero_pool *pool, int nid, struct hstate *only)
{
	struct hstate *h;

	guard(spinlock_irq)(&hugetlb_lock);
	if (pool->folio)
		return pool->folio;
	for_each_hstate(h) {
		struct list_head *list = &h->hugepage_freelists[nid];
		struct folio *folio;

		if (list_empty(list) || (only && h != only))
			continue;
		folio = list_last_entry(list, struct folio, lru);
		if (is_zeroed(folio))
			continue;
		if (folio_test_hwpoison(folio)) {
			/* It will not be taken, wherever it is. */
			list_move(&folio->lru, list);
			continue;
		}
		spin_lock(&pool->lock);
		pool->folio = folio;
		pool->next = 0;
		spin_unlock(&pool->lock);
		return folio;
	}
	return NULL;
}

/* Clears the next pages of @folio; false if there are none, or somebody took it. */
static bool clear_chunk(struct page_zero_pool *pool, struct folio *folio)
{
	unsigned long nr;

	guard(spinlock_irq)(&pool->lock);
	if (pool->folio != folio)
		return false;
	nr = min(CHUNK_PAGES, folio_nr_pages(folio) - pool->next);
	page_zero_clear_cold(folio_address(folio) + pool->next * PAGE_SIZE, nr);
	pool->next += nr;
	return nr;
}

/* All of @folio was cleared, unless somebody took it. */
static void finish(struct page_zero_pool *pool, struct folio *folio)
{
	struct hstate *h;

	guard(spinlock_irq)(&hugetlb_lock);
	if (pool->folio != folio || pool->next < folio_nr_pages(folio))
		return;
	release(pool);
	h = folio_hstate(folio);
	set_bit(PG_zeroed, &folio_page(folio, 1)->flags.f);
	pool->zeroed[hstate_index(h)]++;
	list_move(&folio->lru, &h->hugepage_freelists[folio_nid(folio)]);
	count_vm_events(PAGE_ZERO_ALLOCATED, folio_nr_pages(folio));
}

/**
 * page_zero_pool_clear - clear a part of a huge page in the pools of a node
 * @nid: the node
 * @only: size of the pool, or NULL: all
 *
 * Context: the zeroer of the node; may sleep.
 * Return: number of pages cleared, or -ENOENT if all are zero.
 */
long page_zero_pool_clear(int nid, struct hstate *only)
{
	struct page_zero_pool *pool = page_zero_pool(nid);
	struct folio *folio = claim(pool, nid, only);
	unsigned long cleared = 0;

	if (!folio)
		return -ENOENT;
	while (cleared < STEP_PAGES && clear_chunk(pool, folio)) {
		cleared += CHUNK_PAGES;
		cond_resched();
	}
	count_vm_events(PAGE_ZERO_CLEARED, cleared);
	finish(pool, folio);
	return cleared;
}

/**
 * page_zero_pool_nr - how many free huge pages are known to be zero
 * @nid: the node, or NUMA_NO_NODE for all
 * @h: size of the pool
 *
 * Return: the number of huge pages.
 */
unsigned long page_zero_pool_nr(int nid, struct hstate *h)
{
	unsigned long nr = 0;
	int node;

	for_each_node_state(node, N_MEMORY) {
		struct page_zero_pool *pool = page_zero_pool(node);

		if (pool && (nid == NUMA_NO_NODE || nid == node))
			nr += READ_ONCE(pool->zeroed[hstate_index(h)]);
	}
	return nr;
}
