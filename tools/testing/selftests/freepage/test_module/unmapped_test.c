// SPDX-License-Identifier: GPL-2.0
/*
 * A user of the unmapped page allocator for tests. It holds blocks of pages,
 * and says who could read them. All files are in
 * /sys/kernel/debug/unmapped_test.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/gfp.h>
#include <linux/kprobes.h>
#include <linux/list.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
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

/* Which of its allocations the next allocation of a block lets fail, if any. */
static u32 fail_nth;
static DEFINE_SPINLOCK(atomic_lock);

static void arm_failure(void)
{
#ifdef CONFIG_FAULT_INJECTION
	current->fail_nth = fail_nth;
#endif
}

/* What is left is 0 if one failed. */
static void disarm_failure(void)
{
#ifdef CONFIG_FAULT_INJECTION
	fail_nth = current->fail_nth;
	current->fail_nth = 0;
#endif
}

static struct page *alloc_block(bool atomic)
{
	struct page *page;

	if (!atomic) {
		arm_failure();
		page = unmapped_pages_alloc(account ? GFP_KERNEL_ACCOUNT : GFP_KERNEL, order);
		disarm_failure();
		return page;
	}
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
	if (IS_ERR(block->page)) {
		int err = PTR_ERR(block->page);

		kfree(block);
		return err;
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

/* First page frame number, order, and whether one of its pages is broken. */
static void *blocks_start(struct seq_file *m, loff_t *pos)
{
	mutex_lock(&control_mutex);
	return seq_list_start(m->private, *pos);
}

static void *blocks_next(struct seq_file *m, void *v, loff_t *pos)
{
	return seq_list_next(v, m->private, pos);
}

static void blocks_stop(struct seq_file *m, void *v)
{
	mutex_unlock(&control_mutex);
}

static int blocks_show(struct seq_file *m, void *v)
{
	struct block *block = list_entry(v, struct block, list);
	bool broken = false;
	unsigned int i;

	for (i = 0; i < 1U << block->order; i++)
		broken |= PageHWPoison(block->page + i);
	seq_printf(m, "%lu %u %s\n", page_to_pfn(block->page), block->order,
		   broken ? "broken" : "sound");
	return 0;
}

static const struct seq_operations blocks_sops = {
	.start	= blocks_start,
	.next	= blocks_next,
	.stop	= blocks_stop,
	.show	= blocks_show,
};

static int blocks_open(struct inode *inode, struct file *file)
{
	int err = seq_open(file, &blocks_sops);

	if (!err)
		((struct seq_file *)file->private_data)->private = inode->i_private;
	return err;
}

static const struct file_operations blocks_fops = {
	.owner		= THIS_MODULE,
	.open		= blocks_open,
	.read		= seq_read,
	.llseek		= seq_lseek,
	.release	= seq_release,
};

/* Whether the page at "pfn" can be read where the direct map would have it. */
static u64 pfn;

static int pfn_readable_get(void *data, u64 *readable)
{
	struct page *page = pfn_to_online_page(pfn);
	char byte;

	if (!page)
		return -ENXIO;
	*readable = !copy_from_kernel_nofault(&byte, page_address(page), 1);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(pfn_readable_fops, pfn_readable_get, NULL, "%llu\n");

/*
 * Pages of the page allocator that can be read where the kernel image is mapped:
 * parts of it that were freed, and what is next to it.
 */
static int image_readable_get(void *data, u64 *count)
{
	unsigned long offset;
	struct page *page;
	char byte;

	*count = 0;
	for (offset = 0; offset < KERNEL_IMAGE_SIZE; offset += PAGE_SIZE) {
		page = pfn_to_online_page(PHYS_PFN(offset + phys_base));
		if (page && !PageReserved(page) &&
		    !copy_from_kernel_nofault(&byte, (void *)(__START_KERNEL_map + offset), 1))
			++*count;
	}
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(image_readable_fops, image_readable_get, NULL, "%llu\n");

#ifdef CONFIG_GFP_UNMAPPED

/* Memory of vmalloc that is mapped nowhere else. Protected by control_mutex. */
static char *area;
static u64 area_pages;
static const gfp_t area_gfp = GFP_KERNEL | __GFP_ZERO | __GFP_UNMAPPED;

/* Its pages can be looked at after vfree() by the name of "freed". */
static void forget_area(void)
{
	u64 i;

	for (i = 0; i < area_pages; i++) {
		struct block *block = kmalloc_obj(*block);

		if (!block)
			break;
		block->order = 0;
		block->page = vmalloc_to_page(area + i * PAGE_SIZE);
		list_add(&block->list, &freed);
	}
	vfree(area);
	area = NULL;
	area_pages = 0;
}

/* Written: an area of so many pages, or none. */
static int vmalloc_set(void *data, u64 pages)
{
	guard(mutex)(&control_mutex);
	if (area)
		forget_area();
	if (!pages)
		return 0;
	forget(&freed);
	area = __vmalloc(pages * PAGE_SIZE, area_gfp);
	if (!area)
		return -ENOMEM;
	area_pages = pages;
	return 0;
}

static int vmalloc_get(void *data, u64 *pages)
{
	guard(mutex)(&control_mutex);
	*pages = area_pages;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(vmalloc_fops, vmalloc_get, vmalloc_set, "%llu\n");

/* Pages of the area that can be read where the direct map would have them. */
static int vmalloc_readable_get(void *data, u64 *count)
{
	char byte;
	u64 i;

	guard(mutex)(&control_mutex);
	*count = 0;
	for (i = 0; i < area_pages; i++) {
		struct page *page = vmalloc_to_page(area + i * PAGE_SIZE);

		*count += !copy_from_kernel_nofault(&byte, page_address(page), 1);
	}
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(vmalloc_readable_fops, vmalloc_readable_get, NULL, "%llu\n");

/* Whether some byte of the area is not zero; it is filled with "fill" after. */
static int vmalloc_dirty_get(void *data, u64 *dirty)
{
	guard(mutex)(&control_mutex);
	if (!area)
		return -ENOENT;
	*dirty = !!memchr_inv(area, 0, area_pages * PAGE_SIZE);
	memset(area, fill, area_pages * PAGE_SIZE);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(vmalloc_dirty_fops, vmalloc_dirty_get, NULL, "%llu\n");

/* Pages that the bulk allocator gives and can be read in the direct map. */
static int bulk_readable_get(void *data, u64 *readable)
{
	struct page *pages[16] = {};
	unsigned long count, i;
	char byte;

	count = alloc_pages_bulk(area_gfp, ARRAY_SIZE(pages), pages);
	if (!count)
		return -ENOMEM;
	*readable = 0;
	for (i = 0; i < count; i++) {
		*readable += !copy_from_kernel_nofault(&byte, page_address(pages[i]), 1);
		__free_page(pages[i]);
	}
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(bulk_readable_fops, bulk_readable_get, NULL, "%llu\n");

/* How the kernel prints the flag. */
static int gfp_show(struct seq_file *m, void *private)
{
	seq_printf(m, "%pGg\n", &area_gfp);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(gfp);

static void create_flag_files(struct dentry *dir)
{
	debugfs_create_file("vmalloc", 0600, dir, NULL, &vmalloc_fops);
	debugfs_create_file("vmalloc_readable", 0400, dir, NULL, &vmalloc_readable_fops);
	debugfs_create_file("vmalloc_dirty", 0400, dir, NULL, &vmalloc_dirty_fops);
	debugfs_create_file("bulk_readable", 0400, dir, NULL, &bulk_readable_fops);
	debugfs_create_file("gfp", 0400, dir, NULL, &gfp_fops);
}

static void drop_area(void)
{
	vmalloc_set(NULL, 0);
}

#else

static void create_flag_files(struct dentry *dir)
{
}

static void drop_area(void)
{
}

#endif /* CONFIG_GFP_UNMAPPED */

#ifdef CONFIG_KRETPROBES

/*
 * GUP-fast of a task that another one overtakes: it takes a reference to a folio,
 * sees that the page table still has it, and only then learns that the file is
 * gone. How long that takes is up to chance, and to the host; so the folio is made
 * to look truncated as soon as GUP-fast has it. One at a time.
 */
static pid_t truncate_for;
static struct folio *truncated;
static struct address_space *truncated_mapping;

static int truncate_grabbed(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	struct folio *folio = (struct folio *)regs_return_value(regs);

	if (current->pid != READ_ONCE(truncate_for) || truncated || !folio ||
	    folio_test_anon(folio) || !folio->mapping)
		return 0;
	truncated = folio;
	truncated_mapping = folio->mapping;
	folio->mapping = NULL;
	return 0;
}

static struct kretprobe truncate_probe = {
	.handler = truncate_grabbed,
	.kp.symbol_name = "try_grab_folio_fast",
};

static void untruncate_folio(void)
{
	truncate_for = 0;
	if (truncated)
		truncated->mapping = truncated_mapping;
	truncated = NULL;
}

/* Written: the task that it happens to next, or 0 to undo it. Read: whether it did. */
static int truncate_set(void *data, u64 pid)
{
	guard(mutex)(&control_mutex);
	untruncate_folio();
	WRITE_ONCE(truncate_for, pid);
	return 0;
}

static int truncate_get(void *data, u64 *happened)
{
	guard(mutex)(&control_mutex);
	*happened = !!truncated;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(truncate_fops, truncate_get, truncate_set, "%llu\n");

/* The function may have been inlined. */
static void create_truncate_file(struct dentry *dir)
{
	if (register_kretprobe(&truncate_probe))
		truncate_probe.kp.addr = NULL;
	else
		debugfs_create_file("truncate", 0600, dir, NULL, &truncate_fops);
}

static void untruncate(void)
{
	if (truncate_probe.kp.addr)
		unregister_kretprobe(&truncate_probe);
	untruncate_folio();
}

#else

static void create_truncate_file(struct dentry *dir)
{
}

static void untruncate(void)
{
}

#endif /* CONFIG_KRETPROBES */

/*
 * Whether a block that is held can be read where it was mapped: after vunmap(), by
 * this CPU, which still had it in its TLB.
 */
static int stale_get(void *data, u64 *readable)
{
	struct block *block;
	char *address, byte;

	guard(mutex)(&control_mutex);
	block = list_first_entry_or_null(&held, struct block, list);
	if (!block)
		return -ENOENT;
	address = map_block(block);
	if (!address)
		return -ENOMEM;
	migrate_disable();
	byte = READ_ONCE(*address);
	vunmap(address);
	*readable = !copy_from_kernel_nofault(&byte, address, 1);
	migrate_enable();
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(stale_fops, stale_get, NULL, "%llu\n");

/* What /proc/kcore should have: "address value" of data that is read-only by now. */
static u32 kcore_mark __ro_after_init;

static int kcore_show(struct seq_file *m, void *private)
{
	seq_printf(m, "%#lx %#x\n", (unsigned long)&kcore_mark, kcore_mark);
	seq_printf(m, "%#lx %#x\n", (unsigned long)kcore_show, *(u32 *)kcore_show);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(kcore);

/* How many ms it takes at least to give the direct map a larger entry back. */
static u32 slow_collapse;

#ifdef CONFIG_KPROBES
static int slow_down(struct kprobe *probe, struct pt_regs *regs)
{
	mdelay(READ_ONCE(slow_collapse));
	return 0;
}

static struct kprobe slow_probe = {
	.symbol_name = "set_direct_map_collapse",
	.pre_handler = slow_down,
};
#endif

static struct dentry *dir;

static int __init unmapped_test_init(void)
{
	int err = unmapped_alloc_enable();

	if (err)
		return err;
	dir = debugfs_create_dir("unmapped_test", NULL);
	debugfs_create_u32("order", 0600, dir, &order);
	debugfs_create_u32("fill", 0600, dir, &fill);
	debugfs_create_bool("account", 0600, dir, &account);
	debugfs_create_file("held", 0600, dir, NULL, &held_fops);
	debugfs_create_file("held_atomic", 0200, dir, NULL, &held_atomic_fops);
	debugfs_create_file("held_readable", 0400, dir, &held, &readable_fops);
	debugfs_create_file("freed_readable", 0400, dir, &freed, &readable_fops);
	debugfs_create_file("dirty", 0400, dir, NULL, &dirty_fops);
	debugfs_create_file("held_blocks", 0400, dir, &held, &blocks_fops);
	debugfs_create_file("freed_blocks", 0400, dir, &freed, &blocks_fops);
	debugfs_create_u32("fail_nth", 0600, dir, &fail_nth);
	debugfs_create_u64("pfn", 0600, dir, &pfn);
	debugfs_create_file("pfn_readable", 0400, dir, NULL, &pfn_readable_fops);
	debugfs_create_file("image_readable", 0400, dir, NULL, &image_readable_fops);
	create_flag_files(dir);
	create_truncate_file(dir);
	debugfs_create_file("stale", 0400, dir, NULL, &stale_fops);
	kcore_mark = 0x5ec7e7;
	debugfs_create_file("kcore", 0400, dir, NULL, &kcore_fops);
#ifdef CONFIG_KPROBES
	if (register_kprobe(&slow_probe))
		slow_probe.addr = NULL;
	else
		debugfs_create_u32("slow_collapse", 0600, dir, &slow_collapse);
#endif
	return 0;
}

static void __exit unmapped_test_exit(void)
{
	debugfs_remove(dir);
	untruncate();
#ifdef CONFIG_KPROBES
	if (slow_probe.addr)
		unregister_kprobe(&slow_probe);
#endif
	drop_area();
	hold(0, false);
	forget(&freed);
}

module_init(unmapped_test_init);
module_exit(unmapped_test_exit);
MODULE_DESCRIPTION("User of unmapped pages for tests");
MODULE_LICENSE("GPL");
