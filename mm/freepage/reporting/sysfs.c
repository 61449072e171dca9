// SPDX-License-Identifier: GPL-2.0
/*
 * Free page reporting: module parameters and /sys/kernel/mm/page_reporting/, two
 * views of the same variables, and what follows when one is changed.
 */
#include <linux/export.h>
#include <linux/kobject.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/page_reporting.h>
#include <linux/suspend.h>
#include <linux/sysfs.h>

#include "../bytes.h"
#include "../freepage.h"
#include "reporting.h"

#undef MODULE_PARAM_PREFIX
#define MODULE_PARAM_PREFIX "page_reporting."

/* hv_balloon reads and changes it, see drivers/hv/hv_balloon.c */
unsigned int page_reporting_order = PAGE_REPORTING_ORDER_UNSPECIFIED;
EXPORT_SYMBOL_GPL(page_reporting_order);

static unsigned int page_reporting_delay_ms = 2 * MSEC_PER_SEC;

/* Whether the delay is shorter where nobody allocates memory */
static bool page_reporting_adaptive = true;

unsigned int freepage_reporting_delay_ms(void)
{
	return READ_ONCE(page_reporting_delay_ms);
}

bool freepage_reporting_adapts(void)
{
	return READ_ONCE(page_reporting_adaptive);
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
	return sysfs_emit(buf, "%u\n", READ_ONCE(freepage_triggers[FREEPAGE_REPORTING].batch));
}

static ssize_t batch_store(struct kobject *kobj, struct kobj_attribute *attr,
			   const char *buf, size_t count)
{
	unsigned int batch;
	int err = kstrtouint(buf, 0, &batch);

	if (!err && !batch)
		err = -ERANGE;
	if (!err)
		WRITE_ONCE(freepage_triggers[FREEPAGE_REPORTING].batch, batch);
	return err ?: count;
}

static ssize_t adaptive_show(struct kobject *kobj, struct kobj_attribute *attr,
			     char *buf)
{
	return sysfs_emit(buf, "%d\n", READ_ONCE(page_reporting_adaptive));
}

static ssize_t adaptive_store(struct kobject *kobj, struct kobj_attribute *attr,
			      const char *buf, size_t count)
{
	bool adaptive;
	int err = kstrtobool(buf, &adaptive);

	if (err)
		return err;
	WRITE_ONCE(page_reporting_adaptive, adaptive);
	freepage_reporting_delay_changed();
	return count;
}

static ssize_t flush_store(struct kobject *kobj, struct kobj_attribute *attr,
			   const char *buf, size_t count)
{
	u64 bytes = U64_MAX;
	int err = 0;

	if (!sysfs_streq(buf, "all"))
		err = freepage_parse_bytes(buf, &bytes);
	if (!err)
		err = freepage_reporting_flush(bytes >> PAGE_SHIFT);
	return err ?: count;
}

static struct kobj_attribute enabled_attr = __ATTR_RW(enabled);
static struct kobj_attribute order_attr = __ATTR_RW(order);
static struct kobj_attribute delay_ms_attr = __ATTR_RW(delay_ms);
static struct kobj_attribute batch_attr = __ATTR_RW(batch);
static struct kobj_attribute adaptive_attr = __ATTR_RW(adaptive);
static struct kobj_attribute flush_attr = __ATTR_WO(flush);

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
	&adaptive_attr.attr,
	&flush_attr.attr,
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
