// SPDX-License-Identifier: GPL-2.0
/*
 * The cache of text outside the direct map, the part in C: what mm/execmem.c
 * calls, what area.rs needs to do to memory, and what has to be in C (work
 * items, initcalls, the debugfs file).
 *
 * Policy is in the .rs files. Nothing here decides which memory goes where.
 *
 * Lock order: text_mutex is taken by those who allocate text and by those who
 * free it, before they get here. So a free only tries to take it, and leaves the
 * memory to a work item if that fails.
 */
#include <linux/debugfs.h>
#include <linux/execmem.h>
#include <linux/kasan.h>
#include <linux/kmemleak.h>
#include <linux/memory.h>
#include <linux/mm.h>
#include <linux/notifier.h>
#include <linux/seq_file.h>
#include <linux/set_memory.h>
#include <linux/slab.h>
#include <linux/text-patching.h>
#include <linux/unmapped_alloc.h>
#include <linux/vmalloc.h>
#include <linux/vmstat.h>
#include <linux/workqueue.h>

#include <asm/tlbflush.h>

#include "../../internal.h"
#include "../../vmalloc.h"
#include "../unmapped/unmapped.h"
#include "execmem.h"

#undef pr_fmt
#define pr_fmt(fmt) "execmem: " fmt

/* Delay until memory that could not be overwritten is looked at again. */
#define EXECMEM_RETRY_DELAY	msecs_to_jiffies(10)

/* Text is overwritten in such pieces, and others get at text_mutex in between. */
#define EXECMEM_TRAP_PIECE	(16 * PAGE_SIZE)

/* Trapping instructions to copy from: as much as one poke writes. */
static u8 execmem_traps[2 * PAGE_SIZE] __page_aligned_bss;

static bool execmem_cache_ready __ro_after_init;

/* What mm/execmem.c calls. */

void __init execmem_cache_init(void)
{
	int err = execmem_rust_init();

	execmem_fill_trapping_insns(execmem_traps, sizeof(execmem_traps));
	execmem_cache_ready = !err;
	if (err)
		pr_err("no cache of text, modules cannot be loaded: error %d\n", err);
}

static size_t execmem_align(const struct execmem_range *range, size_t size)
{
	return ALIGN(size, max_t(size_t, range->alignment, PAGE_SIZE));
}

void *execmem_cache_alloc(const struct execmem_range *range, size_t size)
{
	if (!execmem_cache_ready)
		return NULL;
	return (void *)execmem_rust_alloc(range, execmem_align(range, size), false);
}

/* Without unmapped pages the caller has to do with others. */
void *execmem_cache_alloc_rodata(const struct execmem_range *range, size_t size)
{
	void *p;

	if (!execmem_cache_ready || !unmapped_alloc_is_ready())
		return NULL;
	p = (void *)execmem_rust_alloc(range, execmem_align(range, size), true);
	if (!p)
		return NULL;
	/* The redzones of who had it before are still there. */
	kasan_unpoison_range(p, size);
	/* The module loader tells kmemleak what it is. */
	kmemleak_alloc(p, size, 1, GFP_KERNEL);
	return p;
}

/**
 * execmem_cache_free - free memory of the cache
 * @ptr: as it was allocated
 *
 * Context: process context. May be called with text_mutex held.
 * Return: false if it is none of the cache's.
 */
bool execmem_cache_free(void *ptr)
{
	enum execmem_freed freed;

	if (!execmem_cache_ready)
		return false;
	if (execmem_rust_kind((unsigned long)ptr) == EXECMEM_RODATA)
		kmemleak_free(ptr);
	freed = execmem_rust_free((unsigned long)ptr);
	WARN(freed == EXECMEM_REFUSED,
	     "execmem: %pS is freed, but not allocated: the caller frees it twice?\n", ptr);
	return freed != EXECMEM_NOT_CACHED;
}

/**
 * execmem_release_idle - give back all text that nobody uses
 *
 * Context: process context; may sleep. Allocates nothing.
 */
void execmem_release_idle(void)
{
	if (execmem_cache_ready)
		execmem_rust_purge();
}

/* What is not the cache's, and the cache's data, is writable as it is. */
int execmem_force_rw(void *ptr, size_t size)
{
	unsigned long start = (unsigned long)ptr;
	unsigned int nr = PAGE_ALIGN(size) >> PAGE_SHIFT;
	int err;

	switch (execmem_rust_make_writable(start)) {
	case EXECMEM_TEXT:
		return set_memory_rw_nx_noalias(start, nr);
	case EXECMEM_ALIASED:
		err = set_memory_nx(start, nr);
		return err ?: set_memory_rw(start, nr);
	case EXECMEM_RODATA:
	case EXECMEM_FOREIGN:
		break;
	}
	return 0;
}

int execmem_restore_rox(void *ptr, size_t size)
{
	unsigned long start = (unsigned long)ptr;
	enum execmem_kind kind = execmem_rust_kind(start);
	int err;

	if (kind == EXECMEM_RODATA)
		return -EINVAL;
	size = PAGE_ALIGN(size);
	err = execmem_protect(start, size, kind != EXECMEM_TEXT);
	if (!err)
		execmem_rust_protected(start, size);
	return err;
}

/* Memory, for area.rs. */

/*
 * Nobody is disturbed for something between a block and a page, and no block is
 * sought for it: there was none right before.
 */
static bool execmem_get_page(struct execmem_area *area, unsigned int order)
{
	gfp_t gfp = GFP_KERNEL | __GFP_NOWARN;
	struct page *page;

	if (order && order < PMD_ORDER)
		gfp |= __GFP_NORETRY;
	page = unmapped_pages_alloc_limited(gfp, order, PMD_ORDER - 1);
	if (IS_ERR(page))
		return false;
	set_page_private(page, order);
	list_add_tail(&page->lru, &area->pages);
	unmapped_pages_may_be_saved(1L << order);
	area->size += PAGE_SIZE << order;
	if (order == PMD_ORDER)
		area->large += PMD_SIZE;
	return true;
}

/*
 * There are whole blocks of 2 MiB if these can be had. The rest is as much as is
 * needed, in pieces that the page allocator does not compact memory for: the cache
 * cuts them from larger ones where it gets these. Each begins at a multiple of its
 * size.
 */
static bool execmem_get_pages(struct execmem_area *area, size_t size)
{
	size_t blocks = round_up(size, PMD_SIZE);
	unsigned int order = PAGE_ALLOC_COSTLY_ORDER;

	while (area->size < blocks && execmem_get_page(area, PMD_ORDER))
		;
	while (area->size < size) {
		order = min_t(unsigned int, order, ilog2((size - area->size) >> PAGE_SHIFT));
		while (!execmem_get_page(area, order))
			if (!order--)
				return false;
	}
	return true;
}

static void execmem_put_pages(struct execmem_area *area)
{
	struct page *page, *next;

	list_for_each_entry_safe(page, next, &area->pages, lru) {
		unsigned int order = page_private(page);

		list_del(&page->lru);
		set_page_private(page, 0);
		unmapped_pages_may_be_saved(-(1L << order));
		unmapped_pages_free(page, order);
	}
}

/* To /proc/kcore, which reads other areas through the direct map, it is no secret. */
static struct vm_struct *execmem_get_vm(const struct execmem_range *range,
					const struct execmem_area *area)
{
	const unsigned long flags = VM_MAP | VM_UNMAPPED | VM_READABLE;
	unsigned long align = area->large ? PMD_SIZE : range->alignment;
	struct vm_struct *vm;

	vm = __get_vm_area_node(area->size, align, PAGE_SHIFT, flags,
				range->start, range->end, NUMA_NO_NODE, GFP_KERNEL,
				__builtin_return_address(0));
	if (!vm && range->fallback_start)
		vm = __get_vm_area_node(area->size, align, PAGE_SHIFT, flags,
					range->fallback_start, range->fallback_end,
					NUMA_NO_NODE, GFP_KERNEL,
					__builtin_return_address(0));
	return vm;
}

static int execmem_map_pages(struct execmem_area *area)
{
	unsigned long start = area->start;
	struct page *page;

	list_for_each_entry(page, &area->pages, lru) {
		unsigned int shift = PAGE_SHIFT + page_private(page);
		int err = vmap_pages_range(start, start + (1UL << shift), PAGE_KERNEL,
					   &page, shift);

		if (err)
			return err;
		start += 1UL << shift;
	}
	return 0;
}

/* Nobody can have executed any of it yet, so it may be written to by itself. */
static int execmem_fill(const struct execmem_area *area)
{
	execmem_fill_trapping_insns((void *)area->start, area->size);
	return execmem_protect(area->start, area->size, area->kind == EXECMEM_ALIASED);
}

static int execmem_map_area(const struct execmem_range *range, struct execmem_area *area)
{
	struct vm_struct *vm = execmem_get_vm(range, area);
	int err;

	if (!vm)
		return -ENOMEM;
	area->start = (unsigned long)vm->addr;
	err = execmem_map_pages(area);
	if (!err && (range->flags & EXECMEM_KASAN_SHADOW))
		err = kasan_alloc_module_shadow(vm->addr, area->size, GFP_KERNEL);
	if (err)
		return err;
	return area->kind == EXECMEM_TEXT ? execmem_fill(area) : 0;
}

static int execmem_vmalloc_area(const struct execmem_range *range,
				struct execmem_area *area, size_t size)
{
	void *p;

	area->size = round_up(size, PMD_SIZE);
	p = execmem_vmalloc_block(range, area->size);
	if (!p) {
		area->size = size;
		p = execmem_vmalloc_block(range, area->size);
	}
	if (!p)
		return -ENOMEM;
	area->start = (unsigned long)p;
	if (get_vm_area_page_order(find_vm_area(p)) >= PMD_ORDER)
		area->large = area->size;
	return execmem_fill(area);
}

/* Page tables of what is gone are in no TLB when its pages get a new owner. */
static void execmem_put_area(struct execmem_area *area)
{
	unsigned long start = area->start;

	if (start) {
		kfree(remove_vm_area((void *)start));
		flush_tlb_kernel_range(start, start + area->size);
	}
	execmem_put_pages(area);
	kfree(area);
}

/* The alias is writable again before the pages get a new owner. */
static void execmem_vfree_area(struct execmem_area *area)
{
	if (area->start) {
		set_vm_flush_reset_perms((void *)area->start);
		vfree((void *)area->start);
	}
	kfree(area);
}

/**
 * execmem_area_alloc - allocate and map memory
 * @range: where it may be
 * @size: how much, a multiple of PAGE_SIZE; there may be more
 * @kind: what it is for
 *
 * Text is filled with trapping instructions and executable. Data is writable.
 *
 * Context: process context; may sleep, may be called with text_mutex held.
 * Return: the memory, or NULL.
 */
struct execmem_area *execmem_area_alloc(const struct execmem_range *range, size_t size,
					enum execmem_kind kind)
{
	struct execmem_area *area = kzalloc_obj(*area);
	int err = -ENOMEM;

	if (!area)
		return NULL;
	area->kind = kind;
	INIT_LIST_HEAD(&area->pages);
	if (kind == EXECMEM_ALIASED) {
		if (!execmem_vmalloc_area(range, area, size))
			return area;
		execmem_vfree_area(area);
		return NULL;
	}
	if (execmem_get_pages(area, size))
		err = execmem_map_area(range, area);
	if (err) {
		execmem_put_area(area);
		return NULL;
	}
	return area;
}

/**
 * execmem_area_free - unmap and free memory
 * @area: the memory
 *
 * Context: process context. Memory with pages outside the direct map may be freed
 * by reclaim: nothing is allocated.
 */
void execmem_area_free(struct execmem_area *area)
{
	if (area->kind == EXECMEM_ALIASED)
		execmem_vfree_area(area);
	else
		execmem_put_area(area);
}

bool execmem_range_holds(const struct execmem_range *range, unsigned long start,
			 size_t size)
{
	if (start >= range->start && start + size <= range->end)
		return true;
	return range->fallback_start && start >= range->fallback_start &&
		start + size <= range->fallback_end;
}

bool execmem_unmapped_is_ready(void)
{
	return unmapped_alloc_is_ready();
}

static void execmem_trap_piece(unsigned long start, size_t size)
{
	while (size) {
		size_t len = min(size, sizeof(execmem_traps));

		text_poke_copy_locked((void *)start, execmem_traps, len, false);
		start += len;
		size -= len;
	}
}

static bool execmem_lock_text(bool wait)
{
	/* Early in boot there is no way to poke. */
	if (!text_poke_mm)
		return false;
	if (!wait)
		return mutex_trylock(&text_mutex);
	mutex_lock(&text_mutex);
	return true;
}

/**
 * execmem_trap - overwrite freed text with trapping instructions
 * @start: where it is
 * @size: how much
 * @wait: wait for text_mutex; the caller does not hold it
 *
 * Pokes, so that no page table changes that other CPUs use, and nothing is
 * writable where it is executable.
 *
 * Return: 0, or -EBUSY.
 */
int execmem_trap(unsigned long start, size_t size, bool wait)
{
	while (size) {
		size_t len = min_t(size_t, size, EXECMEM_TRAP_PIECE);

		if (!execmem_lock_text(wait))
			return -EBUSY;
		execmem_trap_piece(start, len);
		mutex_unlock(&text_mutex);
		start += len;
		size -= len;
		cond_resched();
	}
	return 0;
}

/* Executable, and not writable. */
int execmem_protect(unsigned long start, size_t size, bool aliased)
{
	if (aliased)
		return set_memory_rox(start, size >> PAGE_SHIFT);
	return set_memory_rox_noalias(start, size >> PAGE_SHIFT);
}

/* The module loader made parts of it read-only. */
int execmem_make_writable(unsigned long start, size_t size)
{
	return set_memory_rw_nx_noalias(start, size >> PAGE_SHIFT);
}

static void execmem_retry_work_fn(struct work_struct *work)
{
	execmem_rust_retry();
}
static DECLARE_DELAYED_WORK(execmem_retry_work, execmem_retry_work_fn);

void execmem_retry_later(void)
{
	/* Early in boot execmem_register() is still to come. */
	if (system_dfl_wq)
		queue_delayed_work(system_dfl_wq, &execmem_retry_work, EXECMEM_RETRY_DELAY);
}

/* What can be given back is as good as available: /proc/meminfo says so. */
void execmem_count_idle(int nid, long bytes)
{
	mod_node_page_state(NODE_DATA(nid), NR_KERNEL_MISC_RECLAIMABLE,
			    bytes / (long)PAGE_SIZE);
}

int execmem_this_node(void)
{
	return numa_mem_id();
}

unsigned int execmem_possible_nodes(void)
{
	return nr_node_ids;
}

void execmem_cond_resched(void)
{
	cond_resched();
}

/* /sys/kernel/debug/execmem */

static void execmem_show_row(struct seq_file *m, const char *name, size_t bytes)
{
	seq_printf(m, "%-10s%8zu kB\n", name, bytes >> 10);
}

static int execmem_show(struct seq_file *m, void *private)
{
	struct execmem_stats stats;
	int nid;

	for_each_node_state(nid, N_MEMORY) {
		if (!execmem_rust_stats(nid, &stats))
			continue;
		seq_printf(m, "Node %d\n", nid);
		execmem_show_row(m, "Text:", stats.text);
		execmem_show_row(m, "Large:", stats.large);
		execmem_show_row(m, "Aliased:", stats.aliased);
		execmem_show_row(m, "Rodata:", stats.rodata);
		execmem_show_row(m, "Used:", stats.used);
		execmem_show_row(m, "Pending:", stats.pending);
		execmem_show_row(m, "Idle:", stats.idle);
		execmem_show_row(m, "Hole:", stats.hole);
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(execmem);

/* Areas in between may be why there is no room for a larger one. */
static int execmem_purge(struct notifier_block *nb, unsigned long action, void *freed)
{
	*(unsigned long *)freed += execmem_rust_purge() >> PAGE_SHIFT;
	return NOTIFY_OK;
}

static struct notifier_block execmem_purge_notifier = { .notifier_call = execmem_purge };

static int __init execmem_register(void)
{
	int err = execmem_cache_ready ? execmem_rust_register() : 0;

	if (execmem_cache_ready)
		register_vmap_purge_notifier(&execmem_purge_notifier);
	if (err)
		pr_err("text that is not in use is never given back: error %d\n", err);
	execmem_retry_later();
	return err;
}
core_initcall(execmem_register);

static int __init execmem_debugfs_init(void)
{
	if (execmem_cache_ready)
		debugfs_create_file("execmem", 0444, NULL, NULL, &execmem_fops);
	return 0;
}
late_initcall(execmem_debugfs_init);
