/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Free page reporting: what the C code and the Rust code of
 * mm/freepage/reporting share.
 */
#ifndef _MM_FREEPAGE_REPORTING_H
#define _MM_FREEPAGE_REPORTING_H

#include <linux/page_reporting.h>
#include <linux/scatterlist.h>

#include "../freepage.h"

#ifdef CONFIG_PAGE_REPORTING_RUST

/**
 * enum freepage_reporting_stat - what /sys/kernel/mm/page_reporting/ shows
 * @FREEPAGE_REPORTING_BYTES: bytes reported with success
 * @FREEPAGE_REPORTING_REPORTS: calls of the driver that succeeded
 * @FREEPAGE_REPORTING_FAILURES: calls of the driver that failed
 * @FREEPAGE_REPORTING_PASSES: passes over all zones
 * @FREEPAGE_REPORTING_BACKOFF: current delay between passes, or to a zone, in ms
 *	if it was lengthened because the device failed or memory is short, else 0
 * @FREEPAGE_REPORTING_HOLD: longest time a pass held a zone lock, in ns
 */
enum freepage_reporting_stat {
	FREEPAGE_REPORTING_BYTES,
	FREEPAGE_REPORTING_REPORTS,
	FREEPAGE_REPORTING_FAILURES,
	FREEPAGE_REPORTING_PASSES,
	FREEPAGE_REPORTING_BACKOFF,
	FREEPAGE_REPORTING_HOLD,
};

/* mm/freepage/reporting/sysfs.c, for drivers/hv/hv_balloon.c and view.rs */
extern unsigned int page_reporting_order;
unsigned int freepage_reporting_delay_ms(void);
bool freepage_reporting_adapts(void);
unsigned int freepage_reporting_order(unsigned int device_order);

/* mm/freepage/reporting/glue.c, for view.rs */
bool freepage_reporting_refused(void);
void freepage_set_sgs(struct scatterlist *sgs, const struct freepage_run *runs,
		      unsigned long nr);

/* mm/freepage/reporting/view.rs, for sysfs.c */
void freepage_reporting_order_changed(void);
void freepage_reporting_delay_changed(void);
bool freepage_reporting_is_enabled(void);
int freepage_reporting_set_enabled(bool enabled);
int freepage_reporting_flush(unsigned long pages);
u64 freepage_reporting_stat(enum freepage_reporting_stat stat);
void freepage_reporting_forget(void);

#endif /* CONFIG_PAGE_REPORTING_RUST */

#endif /* _MM_FREEPAGE_REPORTING_H */
