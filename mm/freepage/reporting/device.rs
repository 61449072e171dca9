// SPDX-License-Identifier: GPL-2.0

//! Who free pages are reported to: one device at a time, while the user wants it.

use kernel::prelude::*;

/// What starts and stops passes.
pub(crate) trait Passes<D> {
    /// Starts to report to `device`.
    fn start(&self, device: &D) -> Result;

    /// Stops, and waits for a pass that runs.
    fn stop(&self);

    /// Nothing is known about the host's memory any more.
    fn forget(&self);
}

/// Who registered, and whether the user wants reporting. Passes are made if both is there.
pub(crate) struct Registered<D> {
    device: Option<D>,
    enabled: bool,
}

impl<D: PartialEq> Registered<D> {
    /// Nobody; it is wanted.
    pub(crate) const fn new() -> Self {
        Self {
            device: None,
            enabled: true,
        }
    }

    /// Whether the user wants it.
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Registers a device, unless there is one: `EBUSY`.
    pub(crate) fn register(&mut self, device: D, passes: &impl Passes<D>) -> Result {
        if self.device.is_some() {
            return Err(EBUSY);
        }
        if self.enabled {
            passes.start(&device)?;
        }
        self.device = Some(device);
        Ok(())
    }

    /// Unregisters a device, if it is registered.
    pub(crate) fn unregister(&mut self, device: &D, passes: &impl Passes<D>) {
        if self
            .device
            .take_if(|registered| registered == device)
            .is_some()
            && self.enabled
        {
            passes.stop();
        }
    }

    /// Starts or stops, now or when a device registers. On error nothing has changed.
    pub(crate) fn set_enabled(&mut self, enabled: bool, passes: &impl Passes<D>) -> Result {
        if let Some(device) = self.device.as_ref().filter(|_| enabled != self.enabled) {
            if enabled {
                passes.start(device)?;
            } else {
                passes.stop();
            }
        }
        self.enabled = enabled;
        Ok(())
    }

    /// Reports all free pages anew, if passes are made.
    pub(crate) fn forget(&self, passes: &impl Passes<D>) {
        if self.enabled && self.device.is_some() {
            passes.forget();
        }
    }
}

#[cfg(CONFIG_FREEPAGE_KUNIT_TEST)]
#[kunit_tests(freepage_reporting_device)]
mod tests {
    use super::*;
    use core::cell::Cell;

    /// Notes who is reported to.
    struct Mock {
        device: Cell<Option<u32>>,
        forgot: Cell<usize>,
        memory: Cell<bool>,
    }

    impl Mock {
        fn new() -> Self {
            Self {
                device: Cell::new(None),
                forgot: Cell::new(0),
                memory: Cell::new(true),
            }
        }
    }

    impl Passes<u32> for Mock {
        fn start(&self, device: &u32) -> Result {
            assert_eq!(self.device.get(), None);
            if !self.memory.get() {
                return Err(ENOMEM);
            }
            self.device.set(Some(*device));
            Ok(())
        }

        fn stop(&self) {
            assert!(self.device.take().is_some());
        }

        fn forget(&self) {
            self.forgot.set(self.forgot.get() + 1);
        }
    }

    #[test]
    fn one_device_is_reported_to() {
        let passes = Mock::new();
        let mut registered = Registered::new();

        assert_eq!(registered.register(1, &passes), Ok(()));
        assert_eq!(registered.register(2, &passes), Err(EBUSY));
        assert_eq!(passes.device.get(), Some(1));
        registered.unregister(&2, &passes);
        assert_eq!(passes.device.get(), Some(1));
        registered.unregister(&1, &passes);
        assert_eq!(passes.device.get(), None);
        registered.unregister(&1, &passes);
        assert_eq!(registered.register(2, &passes), Ok(()));
        assert_eq!(passes.device.get(), Some(2));
    }

    #[test]
    fn the_user_turns_it_off_and_on() {
        let passes = Mock::new();
        let mut registered = Registered::new();

        assert_eq!(registered.set_enabled(false, &passes), Ok(()));
        assert_eq!(registered.register(1, &passes), Ok(()));
        assert_eq!(passes.device.get(), None);
        registered.forget(&passes);
        assert_eq!(passes.forgot.get(), 0);
        assert_eq!(registered.set_enabled(true, &passes), Ok(()));
        assert_eq!(registered.set_enabled(true, &passes), Ok(()));
        assert_eq!(passes.device.get(), Some(1));
        registered.forget(&passes);
        assert_eq!(passes.forgot.get(), 1);
        assert_eq!(registered.set_enabled(false, &passes), Ok(()));
        assert_eq!(passes.device.get(), None);
        registered.unregister(&1, &passes);
        assert!(!registered.is_enabled());
    }

    #[test]
    fn without_memory_nothing_changes() {
        let passes = Mock::new();
        let mut registered = Registered::new();

        passes.memory.set(false);
        assert_eq!(registered.register(1, &passes), Err(ENOMEM));
        assert_eq!(registered.set_enabled(false, &passes), Ok(()));
        assert_eq!(registered.register(1, &passes), Ok(()));
        assert_eq!(registered.set_enabled(true, &passes), Err(ENOMEM));
        assert!(!registered.is_enabled());
        passes.memory.set(true);
        assert_eq!(registered.set_enabled(true, &passes), Ok(()));
        assert_eq!(passes.device.get(), Some(1));
    }
}
