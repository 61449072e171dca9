// SPDX-License-Identifier: GPL-2.0
/*
 * The allocator of executable memory, the part in C: its interface to the
 * kernel, what text.rs needs to do to text, and what has to be in C (initcalls,
 * the debugfs file, exported symbols).
 *
 * Policy is in the .rs files. Nothing here decides which text goes where.
 */
#include <linux/debugfs.h>
#include <linux/execmem.h>
#include <linux/export.h>
#include <linux/jitalloc.h>
#include <linux/mm.h>
#include <linux/printk.h>
#include <linux/seq_file.h>
#include <linux/set_memory.h>
#include <linux/text-patching.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>

#include "jit.h"

#undef pr_fmt
#define pr_fmt(fmt) "jitalloc: " fmt

/* The interface. */

/**
 * jit_alloc - allocate executable memory
 * @buf: what it is to hold, or NULL for instructions that trap
 * @len: bytes, from 1 on
 *
 * The memory can be executed and read, never written to: jit_update() changes
 * it. It is within reach of a near call from the kernel's text, and aligned to
 * 16 bytes, and to any power of two up to PAGE_SIZE that divides @len.
 *
 * Up to PAGE_SIZE it comes from a slab of its size: multiples of 16 bytes up to
 * 64, then four sizes for each power of two. Beyond that it is a multiple of 64
 * bytes, cut from 2 MiB that others have their parts of.
 *
 * Context: process context, may sleep. Takes text_mutex if @buf is given.
 * Return: the memory, or NULL if there is none or @len is 0.
 */
void *jit_alloc(const void *buf, size_t len)
{
	return (void *)jitalloc_alloc(buf, len, NULL);
}
EXPORT_SYMBOL_GPL(jit_alloc);

/**
 * jit_alloc_flushed - allocate memory whose history cannot be speculated on
 * @len: bytes, from 1 on
 * @flush: makes the branch predictors of all CPUs forget what they know
 *
 * As jit_alloc() without a buffer, for code of those who are not trusted. What
 * was executed there before may still be known to branch predictors. @flush is
 * called unless it has been since that was freed.
 *
 * Context: process context, may sleep, as may @flush.
 * Return: the memory, or NULL if there is none or @len is 0.
 */
void *jit_alloc_flushed(size_t len, void (*flush)(void))
{
	return (void *)jitalloc_alloc(NULL, len, flush);
}
EXPORT_SYMBOL_GPL(jit_alloc_flushed);

/* Says what is wrong with a call. */
static int jit_complain(const char *call, const void *ptr, enum jit_answer answer,
			void *caller)
{
	static const char * const why[] = {
		[JIT_FOREIGN] = "this is not text of jit_alloc(), or it was freed before",
		[JIT_INSIDE] = "the text begins before that; pass what jit_alloc() returned",
		[JIT_FREED] = "the text was freed before",
		[JIT_BEYOND] = "the text ends before that; allocate more, or change less",
		[JIT_UNPOKED] = "the text cannot be changed, and stays allocated",
	};

	if (answer == JIT_DONE)
		return 0;
	pr_err_ratelimited("%s(%p) by %pS: %s; nothing was changed\n", call, ptr,
			   caller, why[answer]);
	return -EINVAL;
}

/**
 * jit_update - change executable memory
 * @dst: where, in memory that jit_alloc() returned; need not be its beginning
 * @src: what is to be there
 * @len: bytes; not beyond what was asked for
 *
 * The change is not atomic, and other CPUs may have fetched the old
 * instructions: nobody may execute these bytes until it returns. Who executed
 * them before has to be waited for (synchronize_rcu_tasks()).
 *
 * Context: process context, may sleep. Takes text_mutex.
 * Return: 0, or -EINVAL, with a message, if the range is not in one piece of
 * allocated memory; nothing is changed then.
 */
int jit_update(void *dst, const void *src, size_t len)
{
	enum jit_answer answer = jitalloc_update((unsigned long)dst, src, len);

	return jit_complain("jit_update", dst, answer, __builtin_return_address(0));
}
EXPORT_SYMBOL_GPL(jit_update);

/**
 * jit_free - free executable memory
 * @ptr: what jit_alloc() returned, or NULL
 *
 * From here on it holds instructions that trap. Nobody may execute it any more.
 * What was not allocated, or is free already, is left alone, with a message.
 *
 * Context: process context, may sleep. Takes text_mutex.
 */
void jit_free(void *ptr)
{
	enum jit_answer answer;

	if (!ptr)
		return;
	answer = jitalloc_free((unsigned long)ptr);
	jit_complain("jit_free", ptr, answer, __builtin_return_address(0));
}
EXPORT_SYMBOL_GPL(jit_free);

/* What text.rs does to text. */

/**
 * jit_text_take - take executable memory that holds traps
 * @pages: how many
 *
 * Of the ROX cache where there is one: it is trapping, and cannot be written to,
 * already. Else it gets there while it cannot be executed yet.
 *
 * Return: its address, or 0.
 */
unsigned long jit_text_take(unsigned long pages)
{
	size_t size = pages << PAGE_SHIFT;
	void *text = execmem_alloc(EXECMEM_BPF, size);

	if (!text || execmem_is_rox(EXECMEM_BPF))
		return (unsigned long)text;
	execmem_fill_trapping_insns(text, size);
	set_vm_flush_reset_perms(text);
	if (set_memory_rox((unsigned long)text, pages)) {
		execmem_free(text);
		return 0;
	}
	return (unsigned long)text;
}

void jit_text_give(unsigned long start)
{
	execmem_free((void *)start);
}

int jit_text_trap(unsigned long start, size_t len)
{
	return text_poke_set((void *)start, INT3_INSN_OPCODE, len) ? 0 : -EINVAL;
}

int jit_text_poke(unsigned long start, const void *src, size_t len)
{
	return text_poke_copy((void *)start, src, len) ? 0 : -EINVAL;
}

static void jit_trim(struct work_struct *work)
{
	jitalloc_trim();
}
static DECLARE_WORK(jit_trim_work, jit_trim);

void jit_queue_trim(void)
{
	queue_work(system_dfl_wq, &jit_trim_work);
}

/* /sys/kernel/debug/jitalloc */

static void jit_show_row(struct seq_file *m, const struct jit_class_stats *stats)
{
	unsigned long in_use = stats->size * stats->used;

	seq_printf(m, "%6lu %8lu %8lu %6lu %9lu %9lu\n", stats->size, stats->objects,
		   stats->used, stats->slabs, in_use - stats->asked,
		   stats->size * stats->objects - in_use);
}

static int jitalloc_show(struct seq_file *m, void *private)
{
	struct jit_class_stats stats;
	struct jit_totals totals;
	unsigned int class;

	if (!jitalloc_totals(&totals))
		return -ENODEV;
	seq_printf(m, "%6s %8s %8s %6s %9s %9s\n", "Size", "Objects", "Used", "Slabs",
		   "Internal", "External");
	for (class = 0; jitalloc_class_stats(class, &stats); class++)
		jit_show_row(m, &stats);
	seq_printf(m, "\nBlocks:      %lu\n", totals.blocks);
	seq_printf(m, "Pages:       %lu\n", totals.block_pages);
	seq_printf(m, "Free pages:  %lu\n", totals.free_pages);
	seq_printf(m, "Large:       %lu\n", totals.large);
	seq_printf(m, "Large pages: %lu\n", totals.large_pages);
	seq_printf(m, "Large free:  %lu\n",
		   (totals.large_pages << PAGE_SHIFT) - totals.large_used);
	seq_printf(m, "Large waste: %lu\n", totals.large_used - totals.large_asked);
	seq_printf(m, "Flushes:     %lu\n", totals.flushes);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(jitalloc);

/* Before the first initcall that has a BPF program. */
static int __init jitalloc_glue_init(void)
{
	int err = jitalloc_init();

	if (err)
		pr_err("cannot be set up, so that nothing can be allocated: error %d\n", err);
	return err;
}
early_initcall(jitalloc_glue_init);

static int __init jitalloc_debugfs_init(void)
{
	debugfs_create_file("jitalloc", 0444, NULL, NULL, &jitalloc_fops);
	return 0;
}
late_initcall(jitalloc_debugfs_init);
