// SPDX-License-Identifier: GPL-2.0
/*
 * A user of the unmapped page allocator for tests. It holds blocks of pages,
 * and says who could read them. All files are in
 * /sys/kernel/debug/unmapped_test.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/debugfs.h>
#include <linux/gfp.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/unmapped_alloc.h>
#include <linux/vmalloc.h>

/* A block that is held, or was. */
struct block {
	struct list_head list;
	struct page *page;
	unsigned int order;
};

/* Protects all below. */
static DEFINE_MUTEX(control_mutex);
static LIST_HEAD(held);
static LIST_HEAD(freed);
static u64 nr_held;

static u32 order;
static u32 fill = 0x5a;
static bool account;
static DEFINE_SPINLOCK(atomic_lock);

static struct page *alloc_block(bool atomic)
{
	struct page *page;

	if (!atomic)
		return unmapped_pages_alloc(account ? GFP_KERNEL_ACCOUNT : GFP_KERNEL, order);
	spin_lock(&atomic_lock);
	page = unmapped_pages_alloc(GFP_NOWAIT, order);
	spin_unlock(&atomic_lock);
	return page;
}

static int hold_one(bool atomic)
{
	struct block *block = kmalloc_obj(*block);

	if (!block)
		return -ENOMEM;
	block->order = order;
	block->page = alloc_block(atomic);
	if (!block->page) {
		kfree(block);
		return -ENOMEM;
	}
	list_add(&block->list, &held);
	nr_held++;
	return 0;
}

static void drop_one(void)
{
	struct block *block = list_first_entry(&held, struct block, list);

	list_move(&block->list, &freed);
	nr_held--;
	unmapped_pages_free(block->page, block->order);
}

static void forget(struct list_head *blocks)
{
	struct block *block, *next;

	list_for_each_entry_safe(block, next, blocks, list)
		kfree(block);
	INIT_LIST_HEAD(blocks);
}

/* Written: hold so many blocks. Newly allocated ones are of "order". */
static int hold(u64 count, bool atomic)
{
	int err = 0;

	guard(mutex)(&control_mutex);
	if (count > nr_held)
		forget(&freed);
	while (!err && nr_held < count)
		err = hold_one(atomic);
	while (nr_held > count)
		drop_one();
	return err;
}

static int held_set(void *data, u64 count)
{
	return hold(count, false);
}

static int held_get(void *data, u64 *count)
{
	guard(mutex)(&control_mutex);
	*count = nr_held;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(held_fops, held_get, held_set, "%llu\n");

/* As "held", but as a caller that holds a spinlock. */
static int held_atomic_set(void *data, u64 count)
{
	return hold(count, true);
}
DEFINE_DEBUGFS_ATTRIBUTE(held_atomic_fops, NULL, held_atomic_set, "%llu\n");

static u64 count_readable(struct list_head *blocks)
{
	struct block *block;
	unsigned int i;
	u64 count = 0;
	char byte;

	list_for_each_entry(block, blocks, list)
		for (i = 0; i < 1U << block->order; i++)
			if (!copy_from_kernel_nofault(&byte, page_address(block->page + i), 1))
				count++;
	return count;
}

/* Pages that can be read where the direct map would have them. */
static int readable_get(void *data, u64 *count)
{
	guard(mutex)(&control_mutex);
	*count = count_readable(data);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(readable_fops, readable_get, NULL, "%llu\n");

static void *map_block(struct block *block)
{
	struct page **pages;
	unsigned int i;
	void *address;

	pages = kvmalloc_objs(*pages, 1UL << block->order);
	if (!pages)
		return NULL;
	for (i = 0; i < 1U << block->order; i++)
		pages[i] = block->page + i;
	address = vmap(pages, 1U << block->order, VM_MAP, PAGE_KERNEL);
	kvfree(pages);
	return address;
}

/* Blocks of which some byte is not zero; all are filled with "fill" after. */
static int dirty_get(void *data, u64 *count)
{
	struct block *block;

	guard(mutex)(&control_mutex);
	*count = 0;
	list_for_each_entry(block, &held, list) {
		size_t size = PAGE_SIZE << block->order;
		void *address = map_block(block);

		if (!address)
			return -ENOMEM;
		*count += !!memchr_inv(address, 0, size);
		memset(address, fill, size);
		vunmap(address);
	}
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(dirty_fops, dirty_get, NULL, "%llu\n");

static struct dentry *dir;

static int __init unmapped_test_init(void)
{
	dir = debugfs_create_dir("unmapped_test", NULL);
	debugfs_create_u32("order", 0600, dir, &order);
	debugfs_create_u32("fill", 0600, dir, &fill);
	debugfs_create_bool("account", 0600, dir, &account);
	debugfs_create_file("held", 0600, dir, NULL, &held_fops);
	debugfs_create_file("held_atomic", 0200, dir, NULL, &held_atomic_fops);
	debugfs_create_file("held_readable", 0400, dir, &held, &readable_fops);
	debugfs_create_file("freed_readable", 0400, dir, &freed, &readable_fops);
	debugfs_create_file("dirty", 0400, dir, NULL, &dirty_fops);
	return 0;
}

static void __exit unmapped_test_exit(void)
{
	debugfs_remove(dir);
	hold(0, false);
	forget(&freed);
}

module_init(unmapped_test_init);
module_exit(unmapped_test_exit);
MODULE_DESCRIPTION("User of unmapped pages for tests");
MODULE_LICENSE("GPL");
