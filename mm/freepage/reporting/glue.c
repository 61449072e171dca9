// SPDX-License-Identifier: GPL-2.0
/*
 * Free page reporting, the part in C: what view.rs cannot call by itself, and
 * whether this guest may report at all.
 */
#include <linux/cc_platform.h>
#include <linux/export.h>
#include <linux/mem_encrypt.h>
#include <linux/mm.h>
#include <linux/page_reporting.h>
#include <linux/page_zero.h>
#include <linux/scatterlist.h>

#include "../freepage.h"
#include "reporting.h"

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/page_reporting.h>

EXPORT_SYMBOL_GPL(page_reporting_register);
EXPORT_SYMBOL_GPL(page_reporting_unregister);

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

	for (; runs < end; runs++, sgs++) {
		struct page *page = pfn_to_page(runs->pfn);

		/* Whatever the host will have there, it is not trusted to be zero. */
		page_zero_forget(page, 1UL << runs->order);
		sg_set_page(sgs, page, PAGE_SIZE << runs->order, 0);
	}
}

/*
 * Whether a page that a confidential guest reported can be used again.
 *
 * s390: it can. SEV and SEV-ES: it can, but what the host has there decrypts to
 * anything. That is enough unless free pages are expected to keep their content:
 * then __GFP_ZERO would hand it out, and a check of the poison would fail.
 */
static bool page_comes_back(void)
{
	if (IS_ENABLED(CONFIG_S390))
		return true;
#ifdef CONFIG_AMD_MEM_ENCRYPT
	return (sev_status & MSR_AMD64_SEV_ENABLED) &&
	       !(sev_status & MSR_AMD64_SEV_SNP_ENABLED) &&
	       !want_init_on_free() && !page_poisoning_enabled_static();
#else
	return false;
#endif
}

/**
 * freepage_reporting_refused - whether this guest must not report pages
 *
 * In a confidential guest a page that the host took away comes back unaccepted
 * (TDX, SEV-SNP), or not at all (Arm CCA, pKVM). Touching it ends the guest. For
 * the others see page_comes_back().
 *
 * Return: true if no device may register.
 */
bool freepage_reporting_refused(void)
{
	if (IS_ENABLED(CONFIG_ARM64) && cc_platform_has(CC_ATTR_MEM_ENCRYPT))
		return true;
	return cc_platform_has(CC_ATTR_GUEST_MEM_ENCRYPT) && !page_comes_back();
}
