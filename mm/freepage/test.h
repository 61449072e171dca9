/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A treatment of free pages for tests: what test.c and test.rs share.
 */
#ifndef _MM_FREEPAGE_TEST_H
#define _MM_FREEPAGE_TEST_H

#include <linux/types.h>

/**
 * struct freepage_test_settings - what a test has set
 * @order: order of the smallest block that is treated
 * @delay_ms: time between a request and the pass, in ms
 * @sleep_ms: how long a batch takes, in ms
 * @fail: so many batches fail
 * @runs: so many runs of a batch are treated, the others later; 0: all of them
 */
struct freepage_test_settings {
	u32 order;
	u32 delay_ms;
	u32 sleep_ms;
	u32 fail;
	u32 runs;
};

extern struct freepage_test_settings freepage_test_settings;

/**
 * enum freepage_test_stat - what it has done since boot
 * @FREEPAGE_TEST_PASSES: passes over all zones
 * @FREEPAGE_TEST_BATCHES: batches that did not fail
 * @FREEPAGE_TEST_FAILURES: batches that did
 * @FREEPAGE_TEST_PAGES: pages treated
 */
enum freepage_test_stat {
	FREEPAGE_TEST_PASSES,
	FREEPAGE_TEST_BATCHES,
	FREEPAGE_TEST_FAILURES,
	FREEPAGE_TEST_PAGES,
};

/* mm/freepage/test.c, for test.rs */
int freepage_test_batch(unsigned int runs);

/* mm/freepage/test.rs, for test.c */
int freepage_test_set_enabled(bool enabled);
u64 freepage_test_stat(enum freepage_test_stat stat);

#endif /* _MM_FREEPAGE_TEST_H */
