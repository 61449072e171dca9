// SPDX-License-Identifier: GPL-2.0
/*
 * Free page treatment, the part in C: the hooks of the page allocator, what
 * zone.rs needs to look at and cannot call by itself, and what has to be in C
 * to keep its name (module parameters, exported symbols, sysfs files).
 *
 * Policy is in the .rs files. Nothing here decides which page is treated.
 *
 * Lock order: page_reporting's mutexes (reporting.rs) -> zone->lock.
 */
#include <linux/cc_platform.h>
#include <linux/export.h>
#include <linux/irq_work.h>
#include <linux/kobject.h>
#include <linux/mem_encrypt.h>
#include <linux/memory.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/page-isolation.h>
#include <linux/sched.h>
#include <linux/suspend.h>
#include <linux/sysfs.h>
#include <linux/workqueue.h>

#include "../internal.h"
#include "../page_alloc.h"
#include "freepage.h"

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/page_reporting.h>

/* Blocks put on free lists that make a pass worth its while */
static unsigned int page_reporting_batch = 1;

DEFINE_STATIC_KEY_FALSE(freepage_enabled);

/* Blocks stay within a chunk, and the groups of a chunk fill a word. */
static_assert(MAX_PAGE_ORDER <= FREEPAGE_CHUNK_ORDER);
static_assert(1 << (FREEPAGE_CHUNK_ORDER - FREEPAGE_GROUP_ORDER) == BITS_PER_LONG);

/*
 * Requests a pass from the hooks. To queue work takes locks under which debug
 * objects allocate pages, that is, zone->lock: not while that is held.
 */
static void page_reporting_request(struct irq_work *work)
{
	freepage_reporting_request();
}
static DEFINE_IRQ_WORK(page_reporting_irq_work, page_reporting_request);

/* Hooks, see freepage.h. */

static struct freepage_chunk *freepage_chunk(struct freepage_map *map,
					     unsigned long pfn)
{
	unsigned long index;

	if (unlikely(!map))
		return NULL;
	index = (pfn - map->start_pfn) >> FREEPAGE_CHUNK_ORDER;
	if (unlikely(index >= map->nr_chunks || !map->chunks[index].freed))
		return NULL;
	return &map->chunks[index];
}

void freepage_freed(struct zone *zone, unsigned long pfn, unsigned int order)
{
	struct freepage_chunk *chunk = freepage_chunk(zone->freepage_map, pfn);
	unsigned long bit = pfn % (1UL << FREEPAGE_CHUNK_ORDER);
	unsigned long *word, *end;

	if (unlikely(!chunk))
		return;

	word = &chunk->freed[BIT_WORD(bit)];
	/* A block is aligned, so a small one does not cross a word. */
	if (order < ilog2(BITS_PER_LONG)) {
		*word |= ((1UL << (1U << order)) - 1) << (bit % BITS_PER_LONG);
		return;
	}
	/* A few words: memset() would cost more. */
	for (end = word + BIT_WORD(1UL << order); word < end; word++)
		WRITE_ONCE(*word, ~0UL);
}

void __freepage_notify(struct zone *zone, unsigned long pfn, unsigned int order)
{
	struct freepage_map *map = zone->freepage_map;
	struct freepage_chunk *chunk = freepage_chunk(map, pfn);
	unsigned long group = pfn % (1UL << FREEPAGE_CHUNK_ORDER) >> FREEPAGE_GROUP_ORDER;
	unsigned long last = group;

	if (unlikely(!chunk))
		return;
	if (order > FREEPAGE_GROUP_ORDER)
		last += (1UL << (order - FREEPAGE_GROUP_ORDER)) - 1;
	for (; group <= last; group++)
		if (!__test_and_set_bit(group, &chunk->pending))
			map->nr_pending++;

	if (map->requested)
		return;
	if (++map->notified < READ_ONCE(page_reporting_batch))
		return;
	map->requested = true;
	irq_work_queue(&page_reporting_irq_work);
}

/* What zone.rs looks at. */

/**
 * freepage_first_zone - first zone of the first online node
 *
 * Return: where to start with next_zone(). Zones are never freed.
 */
struct zone *freepage_first_zone(void)
{
	return first_online_pgdat()->node_zones;
}

/**
 * freepage_lock - take zone->lock
 * @zone: the zone
 *
 * Context: process context, interrupts on. They are off until freepage_unlock().
 */
void freepage_lock(struct zone *zone)
	__acquires(&zone->lock)
{
	spin_lock_irq(&zone->lock);
}

/**
 * freepage_unlock - release zone->lock
 * @zone: the zone, locked by freepage_lock()
 */
void freepage_unlock(struct zone *zone)
	__releases(&zone->lock)
{
	spin_unlock_irq(&zone->lock);
}

/**
 * freepage_find - find the block on a free list that a page belongs to
 * @zone: the zone; its lock is held
 * @pfn: the page; it has a struct page, maybe in another zone
 * @floor: a block that begins below this one is not looked for; the caller
 *         knows that the page before is not free
 * @block: set if a block was found
 *
 * Return: true if @pfn is part of a block on a free list of @zone.
 */
bool freepage_find(struct zone *zone, unsigned long pfn, unsigned long floor,
		   struct freepage_block *block)
{
	struct page *page = pfn_to_page(pfn);
	unsigned long head = pfn;

	lockdep_assert_held(&zone->lock);

	/*
	 * Mostly the block begins with @pfn, else at one of its alignments. The
	 * lock of another zone is not held: what its pages say means nothing.
	 */
	while (!PageBuddy(page) || page_zone(page) != zone) {
		if (!head)
			return false;
		head &= head - 1;
		if (head < floor || pfn - head >= MAX_ORDER_NR_PAGES)
			return false;
		page = pfn_to_page(head);
	}
	if (head + (1UL << buddy_order(page)) <= pfn)
		return false;

	block->page = page;
	block->pfn = head;
	block->order = buddy_order(page);
	return true;
}

/**
 * freepage_spare - how many pages may leave the free lists for a while
 * @zone: the zone; its lock is held
 *
 * Return: the free pages above the low watermark, less those that only
 * high-priority allocations may use.
 */
unsigned long freepage_spare(struct zone *zone)
{
	unsigned long kept = low_wmark_pages(zone) + zone->nr_free_highatomic;
	unsigned long free = zone_page_state(zone, NR_FREE_PAGES);

	return free > kept ? free - kept : 0;
}

/**
 * freepage_online - whether a page exists, and is in a zone
 * @zone: the zone
 * @pfn: any page frame number
 *
 * Return: true if the memory of @pfn is online in @zone.
 */
bool freepage_online(struct zone *zone, unsigned long pfn)
{
	struct page *page = pfn_to_online_page(pfn);

	return page && page_zone(page) == zone;
}

/**
 * freepage_has_page - whether a page is in a zone
 * @zone: the zone
 * @pfn: a page that has a struct page, online or about to be
 */
bool freepage_has_page(struct zone *zone, unsigned long pfn)
{
	return page_zone(pfn_to_page(pfn)) == zone;
}

/**
 * freepage_drain - free the pages on the per-CPU lists of a zone
 * @zone: the zone
 *
 * Context: process context; may sleep.
 */
void freepage_drain(struct zone *zone)
{
	drain_all_pages(zone);
}

void freepage_cond_resched(void)
{
	cond_resched();
}

static int freepage_memory_notify(struct notifier_block *nb,
				  unsigned long action, void *data)
{
	struct memory_notify *arg = data;

	switch (action) {
	case MEM_GOING_ONLINE:
		freepage_memory_online(arg->start_pfn, arg->nr_pages);
		break;
	case MEM_OFFLINE:
		freepage_memory_offline(arg->start_pfn, arg->nr_pages);
		break;
	}
	return NOTIFY_OK;
}

#ifdef CONFIG_PAGE_REPORTING_RUST

/* What device.rs calls. */

/**
 * freepage_set_enabled - turn the hooks of the page allocator on or off
 * @enabled: whether zones are tracked
 *
 * Context: process context; may sleep.
 */
void freepage_set_enabled(bool enabled)
{
	if (enabled)
		static_branch_enable(&freepage_enabled);
	else
		static_branch_disable(&freepage_enabled);
}

/**
 * freepage_reporting_sync - wait for requests from the hooks
 *
 * Context: process context; may sleep. No zone is tracked any more.
 */
void freepage_reporting_sync(void)
{
	irq_work_sync(&page_reporting_irq_work);
}

void freepage_reporting_init_work(struct page_reporting_dev_info *prdev)
{
	INIT_DELAYED_WORK(&prdev->work, freepage_reporting_work);
}

/**
 * freepage_reporting_queue - queue the next pass, if none is queued
 * @prdev: the registered device
 * @delay_ms: time until then
 *
 * Context: any, but zone->lock is not held.
 */
void freepage_reporting_queue(struct page_reporting_dev_info *prdev,
			      unsigned int delay_ms)
{
	queue_delayed_work(system_freezable_wq, &prdev->work,
			   msecs_to_jiffies(delay_ms));
}

/**
 * freepage_reporting_requeue - queue the next pass anew
 * @prdev: the registered device
 * @delay_ms: time until then
 *
 * Context: process context.
 */
void freepage_reporting_requeue(struct page_reporting_dev_info *prdev,
				unsigned int delay_ms)
{
	mod_delayed_work(system_freezable_wq, &prdev->work,
			 msecs_to_jiffies(delay_ms));
}

/**
 * freepage_set_sgs - describe runs of pages to a device
 * @sgs: as many initialized entries
 * @runs: the runs
 * @nr: number of @runs
 */
void freepage_set_sgs(struct scatterlist *sgs, const struct freepage_run *runs,
		      unsigned long nr)
{
	const struct freepage_run *end = runs + nr;

	for (; runs < end; runs++, sgs++)
		sg_set_page(sgs, pfn_to_page(runs->pfn), PAGE_SIZE << runs->order, 0);
}

/* SEV and SEV-ES: a page comes back with undefined content, which is enough. */
static bool page_comes_back(void)
{
#ifdef CONFIG_AMD_MEM_ENCRYPT
	return (sev_status & MSR_AMD64_SEV_ENABLED) &&
	       !(sev_status & MSR_AMD64_SEV_SNP_ENABLED);
#else
	return false;
#endif
}

/**
 * freepage_reporting_refused - whether this guest must not report pages
 *
 * In a confidential guest a page that the host took away comes back unaccepted
 * (TDX, SEV-SNP), or not at all (Arm CCA). Touching it ends the guest.
 */
bool freepage_reporting_refused(void)
{
	if (IS_ENABLED(CONFIG_ARM64) && cc_platform_has(CC_ATTR_MEM_ENCRYPT))
		return true;
	return cc_platform_has(CC_ATTR_GUEST_MEM_ENCRYPT) && !page_comes_back();
}

/*
 * Parameters. /sys/module/page_reporting/parameters/ and
 * /sys/kernel/mm/page_reporting/ are two views of the same variables.
 */
#undef MODULE_PARAM_PREFIX
#define MODULE_PARAM_PREFIX "page_reporting."

/* hv_balloon reads and changes it, see drivers/hv/hv_balloon.c */
unsigned int page_reporting_order = PAGE_REPORTING_ORDER_UNSPECIFIED;
EXPORT_SYMBOL_GPL(page_reporting_order);

static unsigned int page_reporting_delay_ms = 2 * MSEC_PER_SEC;

EXPORT_SYMBOL_GPL(page_reporting_register);
EXPORT_SYMBOL_GPL(page_reporting_unregister);

unsigned int freepage_reporting_delay_ms(void)
{
	return READ_ONCE(page_reporting_delay_ms);
}

/**
 * freepage_reporting_order - the smallest order that is reported
 * @device_order: what the device prefers, or PAGE_REPORTING_ORDER_UNSPECIFIED
 *
 * Sets it where neither the user nor an earlier device has.
 *
 * Return: an order from 0 to MAX_PAGE_ORDER.
 */
unsigned int freepage_reporting_order(unsigned int device_order)
{
	if (READ_ONCE(page_reporting_order) > MAX_PAGE_ORDER)
		WRITE_ONCE(page_reporting_order, device_order <= MAX_PAGE_ORDER ?
						 device_order : pageblock_order);
	return READ_ONCE(page_reporting_order);
}

static void page_reporting_set_order(unsigned int order)
{
	WRITE_ONCE(page_reporting_order, order);
	freepage_reporting_order_changed();
}

static void page_reporting_set_delay(unsigned int delay_ms)
{
	WRITE_ONCE(page_reporting_delay_ms, delay_ms);
	freepage_reporting_delay_changed();
}

static int page_reporting_order_set(const char *val, const struct kernel_param *kp)
{
	int err = param_set_uint_minmax(val, kp, 0, MAX_PAGE_ORDER);

	if (!err)
		freepage_reporting_order_changed();
	return err;
}

static int page_reporting_delay_set(const char *val, const struct kernel_param *kp)
{
	int err = param_set_uint(val, kp);

	if (!err)
		freepage_reporting_delay_changed();
	return err;
}

static const struct kernel_param_ops page_reporting_order_ops = {
	.set = page_reporting_order_set,
	/* signed: -1 while no order was chosen */
	.get = param_get_int,
};
module_param_cb(page_reporting_order, &page_reporting_order_ops,
		&page_reporting_order, 0644);

static const struct kernel_param_ops page_reporting_delay_ops = {
	.set = page_reporting_delay_set,
	.get = param_get_uint,
};
module_param_cb(page_reporting_delay_ms, &page_reporting_delay_ops,
		&page_reporting_delay_ms, 0644);

/* /sys/kernel/mm/page_reporting/ */

static ssize_t enabled_show(struct kobject *kobj, struct kobj_attribute *attr,
			    char *buf)
{
	return sysfs_emit(buf, "%d\n", freepage_reporting_is_enabled());
}

static ssize_t enabled_store(struct kobject *kobj, struct kobj_attribute *attr,
			     const char *buf, size_t count)
{
	bool enabled;
	int err = kstrtobool(buf, &enabled);

	if (!err)
		err = freepage_reporting_set_enabled(enabled);
	return err ?: count;
}

static ssize_t order_show(struct kobject *kobj, struct kobj_attribute *attr,
			  char *buf)
{
	return sysfs_emit(buf, "%d\n", (int)READ_ONCE(page_reporting_order));
}

static ssize_t order_store(struct kobject *kobj, struct kobj_attribute *attr,
			   const char *buf, size_t count)
{
	unsigned int order;
	int err = kstrtouint(buf, 0, &order);

	if (!err && order > MAX_PAGE_ORDER)
		err = -ERANGE;
	if (!err)
		page_reporting_set_order(order);
	return err ?: count;
}

static ssize_t delay_ms_show(struct kobject *kobj, struct kobj_attribute *attr,
			     char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(page_reporting_delay_ms));
}

static ssize_t delay_ms_store(struct kobject *kobj, struct kobj_attribute *attr,
			      const char *buf, size_t count)
{
	unsigned int delay_ms;
	int err = kstrtouint(buf, 0, &delay_ms);

	if (!err)
		page_reporting_set_delay(delay_ms);
	return err ?: count;
}

static ssize_t batch_show(struct kobject *kobj, struct kobj_attribute *attr,
			  char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(page_reporting_batch));
}

static ssize_t batch_store(struct kobject *kobj, struct kobj_attribute *attr,
			   const char *buf, size_t count)
{
	unsigned int batch;
	int err = kstrtouint(buf, 0, &batch);

	if (!err && !batch)
		err = -ERANGE;
	if (!err)
		WRITE_ONCE(page_reporting_batch, batch);
	return err ?: count;
}

static struct kobj_attribute enabled_attr = __ATTR_RW(enabled);
static struct kobj_attribute order_attr = __ATTR_RW(order);
static struct kobj_attribute delay_ms_attr = __ATTR_RW(delay_ms);
static struct kobj_attribute batch_attr = __ATTR_RW(batch);

#define PAGE_REPORTING_STAT(name, stat)						\
static ssize_t name##_show(struct kobject *kobj, struct kobj_attribute *attr,	\
			   char *buf)						\
{										\
	return sysfs_emit(buf, "%llu\n", freepage_reporting_stat(stat));	\
}										\
static struct kobj_attribute name##_attr = __ATTR_RO(name)

PAGE_REPORTING_STAT(bytes_reported, FREEPAGE_REPORTING_BYTES);
PAGE_REPORTING_STAT(reports, FREEPAGE_REPORTING_REPORTS);
PAGE_REPORTING_STAT(failures, FREEPAGE_REPORTING_FAILURES);
PAGE_REPORTING_STAT(passes, FREEPAGE_REPORTING_PASSES);
PAGE_REPORTING_STAT(backoff_ms, FREEPAGE_REPORTING_BACKOFF);
PAGE_REPORTING_STAT(longest_hold_ns, FREEPAGE_REPORTING_HOLD);

static struct attribute *page_reporting_attrs[] = {
	&enabled_attr.attr,
	&order_attr.attr,
	&delay_ms_attr.attr,
	&batch_attr.attr,
	&bytes_reported_attr.attr,
	&reports_attr.attr,
	&failures_attr.attr,
	&passes_attr.attr,
	&backoff_ms_attr.attr,
	&longest_hold_ns_attr.attr,
	NULL,
};

static const struct attribute_group page_reporting_group = {
	.name = "page_reporting",
	.attrs = page_reporting_attrs,
};

/*
 * A restored image, or the kernel that loaded it, may have touched any page:
 * what was reported before says nothing about the host's memory now.
 */
static int freepage_pm_notify(struct notifier_block *nb, unsigned long action,
			      void *data)
{
	if (action == PM_POST_HIBERNATION || action == PM_POST_RESTORE)
		freepage_reporting_forget();
	return NOTIFY_OK;
}

static int __init page_reporting_init(void)
{
	pm_notifier(freepage_pm_notify, 0);
	if (sysfs_create_group(mm_kobj, &page_reporting_group))
		pr_err("page_reporting: no /sys/kernel/mm/page_reporting, out of memory\n");
	return 0;
}
subsys_initcall(page_reporting_init);

#endif /* CONFIG_PAGE_REPORTING_RUST */

static int __init freepage_glue_init(void)
{
	freepage_init();
	return hotplug_memory_notifier(freepage_memory_notify,
				       DEFAULT_CALLBACK_PRI);
}
core_initcall(freepage_glue_init);
