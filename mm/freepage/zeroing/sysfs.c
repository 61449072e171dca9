// SPDX-License-Identifier: GPL-2.0
/*
 * /sys/kernel/mm/page_zero/, see
 * Documentation/ABI/testing/sysfs-kernel-mm-page-zero.
 */
#include <linux/kobject.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/string.h>
#include <linux/sysfs.h>

#include "../bytes.h"
#include "../reporting/reporting.h"
#include "page_zero.h"
#include "zeroing.h"

#define PAGE_ZERO_DELAY_MAX_MS	3600000

/* Serializes writes, so that low_percent stays below high_percent. */
static DEFINE_MUTEX(settings_mutex);

static ssize_t set(const char *name, unsigned int *setting, const char *buf,
		   size_t count, unsigned int min, unsigned int max)
{
	unsigned int value;
	int error = kstrtouint(buf, 10, &value);

	if (!error && (value < min || value > max))
		error = -EINVAL;
	if (error) {
		pr_info_ratelimited("page_zero: %s: expected %u to %u\n", name, min, max);
		return error;
	}
	WRITE_ONCE(*setting, value);
	page_zero_wake();
	return count;
}

static ssize_t high_percent_show(struct kobject *kobj, struct kobj_attribute *attr,
				 char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(page_zero_settings.high_percent));
}

static ssize_t high_percent_store(struct kobject *kobj, struct kobj_attribute *attr,
				  const char *buf, size_t count)
{
	ssize_t error;

	guard(mutex)(&settings_mutex);
	error = set("high_percent", &page_zero_settings.high_percent, buf, count,
		    page_zero_settings.low_percent, 100);
#ifdef CONFIG_PAGE_REPORTING_RUST
	/* The reserve may have become smaller: what was in it is to be reported. */
	if (error > 0)
		freepage_reporting_order_changed();
#endif
	return error;
}
static struct kobj_attribute high_percent_attr = __ATTR_RW(high_percent);

#define SETTING(name, min, max)							\
static ssize_t name##_show(struct kobject *kobj, struct kobj_attribute *attr,	\
			   char *buf)						\
{										\
	return sysfs_emit(buf, "%u\n", READ_ONCE(page_zero_settings.name));	\
}										\
static ssize_t name##_store(struct kobject *kobj, struct kobj_attribute *attr,	\
			    const char *buf, size_t count)			\
{										\
	guard(mutex)(&settings_mutex);						\
	return set(#name, &page_zero_settings.name, buf, count, min, max);	\
}										\
static struct kobj_attribute name##_attr = __ATTR_RW(name)

SETTING(delay_ms, 1, PAGE_ZERO_DELAY_MAX_MS);
SETTING(min_order, 0, MAX_PAGE_ORDER);
SETTING(low_percent, 0, page_zero_settings.high_percent);
SETTING(cpu_percent, 1, 100);
SETTING(rate_mib, 0, INT_MAX);

static ssize_t enabled_show(struct kobject *kobj, struct kobj_attribute *attr,
			    char *buf)
{
	return sysfs_emit(buf, "%d\n", page_zero_enabled());
}

static ssize_t enabled_store(struct kobject *kobj, struct kobj_attribute *attr,
			     const char *buf, size_t count)
{
	bool enabled;
	int error = kstrtobool(buf, &enabled);

	return error ?: page_zero_set_enabled(enabled) ?: count;
}
static struct kobj_attribute enabled_attr = __ATTR_RW(enabled);

static ssize_t flush_store(struct kobject *kobj, struct kobj_attribute *attr,
			   const char *buf, size_t count)
{
	u64 bytes;
	int error = freepage_parse_bytes(buf, &bytes);

	if (error) {
		pr_info_ratelimited("page_zero: flush: expected bytes, such as 256M\n");
		return error;
	}
	return page_zero_flush(bytes) ?: count;
}
static struct kobj_attribute flush_attr = __ATTR_WO(flush);

/* The sum over all CPUs of a field of struct page_zero_counts */
#define SUM(field) ({							\
	unsigned long sum = 0;						\
	int cpu;							\
	for_each_possible_cpu(cpu)					\
		sum += READ_ONCE(per_cpu(page_zero_counts, cpu).field);	\
	sum;								\
})

/* A figure for each order, from 0 on */
static ssize_t results_show(char *buf, enum page_zero_result result)
{
	ssize_t len = 0;
	int order;

	for (order = 0; order < NR_PAGE_ORDERS; order++) {
		len += sysfs_emit_at(buf, len, "%lu%c", SUM(results[order][result]),
				     order < MAX_PAGE_ORDER ? ' ' : '\n');
	}
	return len;
}

#define RESULTS(name, result)							\
static ssize_t name##_show(struct kobject *kobj, struct kobj_attribute *attr,	\
			   char *buf)						\
{										\
	return results_show(buf, result);					\
}										\
static struct kobj_attribute name##_attr = __ATTR_RO(name)

RESULTS(hits, PAGE_ZERO_RESULT_HIT);
RESULTS(partial_hits, PAGE_ZERO_RESULT_PARTIAL);
RESULTS(misses, PAGE_ZERO_RESULT_MISS);

static ssize_t zeroed_bytes_show(struct kobject *kobj, struct kobj_attribute *attr,
				 char *buf)
{
	ssize_t len = 0;
	int nid;

	for_each_node_state(nid, N_MEMORY)
		len += sysfs_emit_at(buf, len, "%d %llu\n", nid,
				     (u64)page_zero_nr_zeroed(nid) << PAGE_SHIFT);
	return len;
}
static struct kobj_attribute zeroed_bytes_attr = __ATTR_RO(zeroed_bytes);

static ssize_t cleared_bytes_show(struct kobject *kobj, struct kobj_attribute *attr,
				  char *buf)
{
	return sysfs_emit(buf, "%llu\n", (u64)page_zero_events(PAGE_ZERO_CLEARED) << PAGE_SHIFT);
}
static struct kobj_attribute cleared_bytes_attr = __ATTR_RO(cleared_bytes);

static ssize_t used_bytes_show(struct kobject *kobj, struct kobj_attribute *attr,
			       char *buf)
{
	return sysfs_emit(buf, "%llu\n", (u64)page_zero_events(PAGE_ZERO_USED) << PAGE_SHIFT);
}
static struct kobj_attribute used_bytes_attr = __ATTR_RO(used_bytes);

static ssize_t vain_bytes_show(struct kobject *kobj, struct kobj_attribute *attr,
			       char *buf)
{
	/* What is used was allocated before: read in this order, it is not more. */
	unsigned long used = page_zero_events(PAGE_ZERO_USED);
	unsigned long allocated = page_zero_events(PAGE_ZERO_ALLOCATED);

	return sysfs_emit(buf, "%llu\n", (u64)(allocated - min(used, allocated)) << PAGE_SHIFT);
}
static struct kobj_attribute vain_bytes_attr = __ATTR_RO(vain_bytes);

static ssize_t longest_hold_ns_show(struct kobject *kobj, struct kobj_attribute *attr,
				    char *buf)
{
	return sysfs_emit(buf, "%llu\n", page_zero_longest_hold_ns());
}
static struct kobj_attribute longest_hold_ns_attr = __ATTR_RO(longest_hold_ns);

#ifdef CONFIG_PAGE_ZERO_VERIFY
static ssize_t false_claims_show(struct kobject *kobj, struct kobj_attribute *attr,
				 char *buf)
{
	return sysfs_emit(buf, "%lu\n", SUM(false_claims));
}
static struct kobj_attribute false_claims_attr = __ATTR_RO(false_claims);
#endif

static struct attribute *page_zero_attrs[] = {
	&enabled_attr.attr,
	&delay_ms_attr.attr,
	&min_order_attr.attr,
	&low_percent_attr.attr,
	&high_percent_attr.attr,
	&cpu_percent_attr.attr,
	&rate_mib_attr.attr,
	&flush_attr.attr,
	&hits_attr.attr,
	&partial_hits_attr.attr,
	&misses_attr.attr,
	&zeroed_bytes_attr.attr,
	&cleared_bytes_attr.attr,
	&used_bytes_attr.attr,
	&vain_bytes_attr.attr,
	&longest_hold_ns_attr.attr,
#ifdef CONFIG_PAGE_ZERO_VERIFY
	&false_claims_attr.attr,
#endif
	NULL,
};

static const struct attribute_group page_zero_group = {
	.name = "page_zero",
	.attrs = page_zero_attrs,
};

static int __init page_zero_sysfs_init(void)
{
	return sysfs_create_group(mm_kobj, &page_zero_group);
}
late_initcall(page_zero_sysfs_init);
