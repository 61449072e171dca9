/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The allocator of executable memory: what the C glue and the Rust code of
 * mm/freepage/jit share.
 */
#ifndef _MM_FREEPAGE_JIT_H
#define _MM_FREEPAGE_JIT_H

#include <linux/types.h>

#ifdef CONFIG_JITALLOC

/**
 * enum jit_answer - what became of a call
 * @JIT_DONE: what was asked for
 * @JIT_FOREIGN: the pointer is not to text of this allocator, or the text was
 *	freed before, and its page with it
 * @JIT_INSIDE: the pointer is into text, not to where it begins
 * @JIT_FREED: the text was freed before
 * @JIT_BEYOND: not all that is to be changed is text of the same allocation
 * @JIT_UNPOKED: the text could not be changed
 */
enum jit_answer {
	JIT_DONE,
	JIT_FOREIGN,
	JIT_INSIDE,
	JIT_FREED,
	JIT_BEYOND,
	JIT_UNPOKED,
};

/**
 * struct jit_class_stats - what debugfs shows of a size class
 * @size: bytes of an object
 * @objects: objects that its slabs have, free or in use
 * @used: objects in use
 * @slabs: number of slabs
 * @asked: bytes that were asked for by those who use the objects
 */
struct jit_class_stats {
	unsigned long size;
	unsigned long objects;
	unsigned long used;
	unsigned long slabs;
	unsigned long asked;
};

/**
 * struct jit_totals - what debugfs shows of all else
 * @blocks: number of blocks that slabs are made of
 * @block_pages: pages that they have
 * @free_pages: pages of them that belong to no slab
 * @large: pieces that are larger than a page
 * @large_pages: pages of the areas that they are cut from
 * @large_used: bytes that they have
 * @large_asked: bytes that were asked for
 * @flushes: times that branch predictors were flushed
 */
struct jit_totals {
	unsigned long blocks;
	unsigned long block_pages;
	unsigned long free_pages;
	unsigned long large;
	unsigned long large_pages;
	unsigned long large_used;
	unsigned long large_asked;
	unsigned long flushes;
};

/* mm/freepage/jit/glue.c, for text.rs */
unsigned long jit_text_take(unsigned long pages);
void jit_text_give(unsigned long start);
int jit_text_trap(unsigned long start, size_t len);
int jit_text_poke(unsigned long start, const void *src, size_t len);
void jit_queue_trim(void);

/* mm/freepage/jit/jitalloc.rs, for glue.c */
int jitalloc_init(void);
unsigned long jitalloc_alloc(const void *src, size_t len, void (*flush)(void));
enum jit_answer jitalloc_update(unsigned long dst, const void *src, size_t len);
enum jit_answer jitalloc_free(unsigned long start);
void jitalloc_trim(void);
bool jitalloc_class_stats(unsigned int class, struct jit_class_stats *stats);
bool jitalloc_totals(struct jit_totals *totals);

#else

static inline void jitalloc_trim(void)
{
}

#endif /* CONFIG_JITALLOC */

#endif /* _MM_FREEPAGE_JIT_H */
