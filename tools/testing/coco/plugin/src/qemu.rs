// SPDX-License-Identifier: GPL-2.0

//! QEMU's plugin interface, version 7 (`include/plugins/qemu-plugin.h`), and nothing else: what it
//! is used for is elsewhere.
//!
//! An instruction that a handler has done is left by `qemu_plugin_set_pc`, which does not return:
//! it jumps out of the callback. So everything that has to be dropped lives in functions that have
//! returned before, and no lock is held.

use crate::{
    breakpoint, control,
    insn::{Instruction, LONGEST},
    monitor::{Access, Kind, Monitor, say},
    options::Options,
    pages::PAGE,
    snp::Snp,
    tdx::Tdx,
    vcpu::{Action, Register, Stop, Vcpu},
};
use coco_protocol::Guest;
use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    ptr,
    sync::{Mutex, OnceLock},
};

/// The version of the interface that this is built for; QEMU refuses another.
const VERSION: c_int = 7;

#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = VERSION;

/// The head of `struct qemu_info_t`.
#[repr(C)]
pub struct Info {
    target: *const c_char,
    oldest: c_int,
    newest: c_int,
    system: bool,
}

/// GLib's GArray and GByteArray as far as they are public.
#[repr(C)]
struct Array {
    data: *mut u8,
    len: c_uint,
}

/// `qemu_plugin_reg_descriptor`.
#[repr(C)]
struct RegisterDescriptor {
    handle: *mut c_void,
    name: *const c_char,
    feature: *const c_char,
    read_only: bool,
}

type Callback = extern "C" fn(*mut c_void);
type VcpuCallback = extern "C" fn(c_uint, *mut c_void);
type BlockCallback = extern "C" fn(*mut c_void, *mut c_void);
type AccessCallback = extern "C" fn(c_uint, c_uint, u64, *mut c_void);

/// `enum qemu_plugin_cb_flags`.
const NO_REGISTERS: c_int = 0;
const REGISTERS_AND_PC: c_int = 3;
/// `enum qemu_plugin_mem_rw`: loads and stores.
const LOADS_AND_STORES: c_int = 3;

unsafe extern "C" {
    fn g_byte_array_new() -> *mut Array;
    fn g_byte_array_append(array: *mut Array, data: *const u8, len: c_uint) -> *mut Array;
    fn g_byte_array_free(array: *mut Array, segment: c_int) -> *mut u8;
    fn g_array_free(array: *mut Array, segment: c_int) -> *mut c_char;

    fn qemu_plugin_get_registers() -> *mut Array;
    fn qemu_plugin_read_register(handle: *mut c_void, bytes: *mut Array) -> bool;
    fn qemu_plugin_write_register(handle: *mut c_void, bytes: *mut Array) -> bool;
    fn qemu_plugin_set_pc(pc: u64) -> !;
    fn qemu_plugin_num_vcpus() -> c_int;

    fn qemu_plugin_read_memory_hwaddr(address: u64, bytes: *mut Array, len: usize) -> c_int;
    fn qemu_plugin_write_memory_hwaddr(address: u64, bytes: *mut Array) -> c_int;
    fn qemu_plugin_translate_vaddr(address: u64, physical: *mut u64) -> bool;

    fn qemu_plugin_tb_n_insns(block: *const c_void) -> usize;
    fn qemu_plugin_tb_get_insn(block: *const c_void, index: usize) -> *mut c_void;
    fn qemu_plugin_insn_data(insn: *const c_void, bytes: *mut c_void, len: usize) -> usize;
    fn qemu_plugin_insn_size(insn: *const c_void) -> usize;
    fn qemu_plugin_insn_vaddr(insn: *const c_void) -> u64;

    fn qemu_plugin_get_hwaddr(info: c_uint, address: u64) -> *mut c_void;
    fn qemu_plugin_hwaddr_is_io(address: *const c_void) -> bool;
    fn qemu_plugin_hwaddr_phys_addr(address: *const c_void) -> u64;
    fn qemu_plugin_mem_is_store(info: c_uint) -> bool;
    fn qemu_plugin_mem_size_shift(info: c_uint) -> c_uint;

    fn qemu_plugin_register_vcpu_init_cb(id: u64, callback: VcpuCallback, data: *mut c_void);
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, callback: BlockCallback, data: *mut c_void);
    fn qemu_plugin_register_atexit_cb(id: u64, callback: Callback, data: *mut c_void);
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        insn: *mut c_void,
        callback: VcpuCallback,
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_mem_cb(
        insn: *mut c_void,
        callback: AccessCallback,
        flags: c_int,
        rw: c_int,
        data: *mut c_void,
    );
}

/// The plugin, from its installation to the end of the process.
struct Plugin {
    monitor: Monitor,
    tdx: Tdx,
    snp: Snp,
    /// By the registers' numbers. They are the same for every vCPU.
    handles: OnceLock<Handles>,
}

struct Handles([*mut c_void; Register::ALL.len()]);

// SAFETY: the handles are numbers in disguise, which QEMU takes from any vCPU's thread.
unsafe impl Send for Handles {}
// SAFETY: as above.
unsafe impl Sync for Handles {}

static PLUGIN: OnceLock<Plugin> = OnceLock::new();

/// A GByteArray.
struct Bytes(*mut Array);

impl Bytes {
    fn of(bytes: &[u8]) -> Self {
        // SAFETY: the new array is ours, and GLib copies `bytes.len()` bytes from a valid slice.
        unsafe {
            let array = g_byte_array_new();
            Self(g_byte_array_append(
                array,
                bytes.as_ptr(),
                bytes.len() as c_uint,
            ))
        }
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: the array is valid until it is dropped.
        let array = unsafe { &*self.0 };
        if array.len == 0 {
            return &[];
        }
        // SAFETY: GLib says that `len` bytes are at `data`.
        unsafe { std::slice::from_raw_parts(array.data, array.len as usize) }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: the array is ours, and nobody uses it any more.
        unsafe { g_byte_array_free(self.0, 1) };
    }
}

/// The vCPU in whose callback we are.
struct Current<'a> {
    index: usize,
    pc: u64,
    handles: &'a Handles,
}

impl Vcpu for Current<'_> {
    fn index(&self) -> usize {
        self.index
    }

    fn count(&self) -> usize {
        // SAFETY: it may be called at any time.
        unsafe { qemu_plugin_num_vcpus() }.max(1) as usize
    }

    fn pc(&self) -> u64 {
        self.pc
    }

    fn get(&self, register: Register) -> u64 {
        let bytes = Bytes::of(&[]);
        // SAFETY: we are in a callback that was registered with access to registers.
        let read = unsafe { qemu_plugin_read_register(self.handles.0[register as usize], bytes.0) };
        if !read || bytes.as_slice().is_empty() {
            fail(&format!(
                "QEMU does not let register {} be read",
                register.name()
            ));
        }
        let mut value = [0; 8];
        let got = &bytes.as_slice()[..bytes.as_slice().len().min(8)];
        value[..got.len()].copy_from_slice(got);
        u64::from_le_bytes(value)
    }

    fn set(&self, register: Register, value: u64) {
        let bytes = Bytes::of(&value.to_le_bytes());
        // SAFETY: we are in a callback that was registered with access to registers.
        let written =
            unsafe { qemu_plugin_write_register(self.handles.0[register as usize], bytes.0) };
        if !written {
            fail(&format!(
                "QEMU does not let register {} be written",
                register.name()
            ));
        }
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        let got = Bytes::of(&[]);
        // SAFETY: QEMU sizes the array to what it reads.
        let status = unsafe { qemu_plugin_read_memory_hwaddr(address, got.0, bytes.len()) };
        let whole = status == 0 && got.as_slice().len() == bytes.len();
        if whole {
            bytes.copy_from_slice(got.as_slice());
        }
        whole
    }

    fn write(&self, address: u64, bytes: &[u8]) -> bool {
        let bytes = Bytes::of(bytes);
        // SAFETY: QEMU reads the array, which is valid.
        unsafe { qemu_plugin_write_memory_hwaddr(address, bytes.0) == 0 }
    }

    fn translate(&self, address: u64) -> Option<u64> {
        translate(address)
    }
}

/// An instruction that is looked at, and where it was when it was translated. QEMU uses a
/// translation wherever in the address space its page is mapped.
struct Watched {
    instruction: Instruction,
    pc: u64,
    len: u64,
    /// Guest-physical.
    place: Option<u64>,
    /// Where the block began.
    block: u64,
}

impl Watched {
    /// Where it is executed. RIP is somewhere in the block's first page: QEMU does not keep it up
    /// to date.
    fn pc(&self, vcpu: &Current<'_>) -> u64 {
        // An AP begins in a segment that does not begin at 0.
        if self.instruction == Instruction::ApStart {
            return self.pc;
        }
        let page = |address: u64| address & !(PAGE - 1);
        let into_block = self.pc.wrapping_sub(page(self.block));
        let pc = page(vcpu.get(Register::Rip)).wrapping_add(into_block);
        if pc == self.pc || self.place.is_none() || translate(pc) != self.place {
            return self.pc;
        }
        pc
    }
}

fn execute(plugin: &Plugin, instruction: Instruction, vcpu: &dyn Vcpu) -> Action {
    let Plugin {
        monitor, tdx, snp, ..
    } = plugin;
    match instruction {
        Instruction::Int3 => breakpoint::int3(monitor, vcpu),
        Instruction::Cpuid => match (control::cpuid(monitor, vcpu), monitor.options.guest) {
            (Action::Native, Guest::Tdx) => tdx.cpuid(monitor, vcpu),
            (Action::Native, Guest::Snp) => snp.cpuid(monitor, vcpu),
            (action, _) => action,
        },
        Instruction::Tdcall => tdx.tdcall(monitor, vcpu),
        Instruction::Iret => tdx.iret(vcpu),
        Instruction::Rdmsr => snp.rdmsr(monitor, vcpu),
        Instruction::Wrmsr => snp.wrmsr(monitor, vcpu),
        Instruction::Vmgexit => snp.vmgexit(monitor, vcpu),
        Instruction::Pvalidate => snp.pvalidate(monitor, vcpu),
        Instruction::PatchedPvalidate => snp.patched_pvalidate(monitor, vcpu),
        Instruction::Rmpadjust => snp.rmpadjust(monitor, vcpu),
        Instruction::ReadCr3(to) => snp.read_cr3(monitor, vcpu, to),
        Instruction::WriteCr3(from) => match monitor.use_tables(vcpu, vcpu.get(from)) {
            Action::Native if monitor.options.guest == Guest::Snp => {
                snp.write_cr3(monitor, vcpu, from)
            }
            action => action,
        },
        Instruction::Probed => snp.rmp.patches.probed(vcpu),
        Instruction::ApStart => snp.aps.enter(monitor, vcpu),
    }
}

/// Whether an instruction means something to this guest once the kernel runs, or always.
fn concerns(guest: Guest, check: bool, instruction: Instruction) -> bool {
    match instruction {
        Instruction::Int3 | Instruction::Cpuid => true,
        Instruction::WriteCr3(_) => check || guest == Guest::Snp,
        Instruction::Tdcall | Instruction::Iret => guest == Guest::Tdx,
        _ => guest == Guest::Snp,
    }
}

/// Does the instruction; where the guest goes on if QEMU is not to execute it.
fn executed(index: c_uint, watched: &Watched) -> Option<u64> {
    let plugin = PLUGIN.get()?;
    let handles = plugin.handles.get()?;
    let mut vcpu = Current {
        index: index as usize,
        pc: watched.pc,
        handles,
    };
    vcpu.pc = watched.pc(&vcpu);
    match execute(plugin, watched.instruction, &vcpu) {
        Action::Native => None,
        Action::Done => Some(vcpu.pc + watched.len),
        Action::Again => Some(vcpu.pc),
        Action::Jump(offset) => Some(offset),
        Action::Stop(stop) => end(&plugin.monitor, &stop),
    }
}

extern "C" fn on_instruction(index: c_uint, data: *mut c_void) {
    // SAFETY: `data` is the `Watched` of on_block(), which is never freed.
    let watched = unsafe { &*data.cast::<Watched>() };
    if let Some(pc) = executed(index, watched) {
        // SAFETY: the callback may set the PC, and nothing here has to be dropped.
        unsafe { qemu_plugin_set_pc(pc) }
    }
}

/// Reads eight bytes of the guest's memory.
fn read_word(address: u64) -> Option<u64> {
    let got = Bytes::of(&[]);
    // SAFETY: QEMU sizes the array to what it reads.
    let status = unsafe { qemu_plugin_read_memory_hwaddr(address, got.0, 8) };
    let bytes = got.as_slice().try_into().ok().filter(|_| status == 0);
    bytes.map(u64::from_le_bytes)
}

/// Where a virtual address is, by the page tables of the vCPU in whose callback we are.
fn translate(address: u64) -> Option<u64> {
    let mut physical = 0;
    // SAFETY: QEMU writes to `physical`.
    let mapped = unsafe { qemu_plugin_translate_vaddr(address, &mut physical) };
    mapped.then_some(physical)
}

/// Where an access went: the guest-physical address of a byte of it, `Err` for a device.
fn place(info: c_uint, address: u64) -> Option<Result<u64, ()>> {
    // SAFETY: QEMU answers for the access of which it tells.
    unsafe {
        let place = qemu_plugin_get_hwaddr(info, address);
        if place.is_null() {
            return None;
        }
        if qemu_plugin_hwaddr_is_io(place) {
            return Some(Err(()));
        }
        Some(Ok(qemu_plugin_hwaddr_phys_addr(place)))
    }
}

/// The parts of an access that lie in one page each, and their sizes.
fn parts(address: u64, size: u64) -> impl Iterator<Item = (u64, u64)> {
    let first = size.min(PAGE - address % PAGE);
    let second = (address.wrapping_add(first), size - first);
    [(address, first), second]
        .into_iter()
        .filter(|part| part.1 > 0)
}

extern "C" fn on_access(index: c_uint, info: c_uint, address: u64, pc: *mut c_void) {
    let Some(plugin) = PLUGIN.get() else {
        return;
    };
    // SAFETY: QEMU answers for the access of which it tells.
    let (size, store) = unsafe {
        (
            1 << qemu_plugin_mem_size_shift(info),
            qemu_plugin_mem_is_store(info),
        )
    };
    let kind = if store { Kind::Write } else { Kind::Read };
    for (address, size) in parts(address, size) {
        look(plugin, index as usize, pc as u64, info, address, size, kind);
    }
}

/// Looks at the part of an access that is in one page.
fn look(plugin: &Plugin, vcpu: usize, pc: u64, info: c_uint, address: u64, size: u64, kind: Kind) {
    let monitor = &plugin.monitor;
    let physical = match place(info, address) {
        Some(Ok(physical)) => physical,
        Some(Err(())) => return,
        None => return monitor.failed_lookup(),
    };
    let special = || {
        let leaf = monitor.tables(vcpu)?.walk(address, read_word)?;
        (leaf.physical == physical).then_some(leaf.special)
    };
    let access = Access {
        pc,
        address: physical,
        size,
        kind,
    };
    if let Action::Stop(stop) = monitor.access(Some(vcpu), &access, special) {
        end(monitor, &stop);
    }
}

/// Looks at the code of a block, as it is translated.
fn fetched(monitor: &Monitor, first: u64, end_of_block: u64) {
    let last = end_of_block.wrapping_sub(1);
    for pc in [
        Some(first),
        Some(last).filter(|last| last / PAGE != first / PAGE),
    ] {
        let Some((pc, address)) = pc.and_then(|pc| Some((pc, translate(pc)?))) else {
            continue;
        };
        // How it is mapped does not matter here: what is shared cannot be executed at all.
        let access = Access {
            pc,
            address,
            size: 1,
            kind: Kind::Execute,
        };
        if !monitor.state(address).untouchable() {
            continue;
        }
        // Which vCPU translates it, QEMU does not say.
        if let Action::Stop(stop) = monitor.access(None, &access, || None) {
            end(monitor, &stop);
        }
    }
}

extern "C" fn on_block(block: *mut c_void, _data: *mut c_void) {
    let Some(plugin) = PLUGIN.get() else {
        return;
    };
    let options = &plugin.monitor.options;
    // What the firmware does is its own affair, and translated before the kernel runs.
    let check = options.check && plugin.monitor.started().is_some();
    let mut place = None;
    // SAFETY: QEMU answers for the block that it has just translated.
    for index in 0..unsafe { qemu_plugin_tb_n_insns(block) } {
        let mut bytes = [0; LONGEST];
        // SAFETY: as above; `bytes` has room for LONGEST bytes.
        let (insn, pc, len, got) = unsafe {
            let insn = qemu_plugin_tb_get_insn(block, index);
            let got = qemu_plugin_insn_data(insn, bytes.as_mut_ptr().cast(), LONGEST);
            (
                insn,
                qemu_plugin_insn_vaddr(insn),
                qemu_plugin_insn_size(insn),
                got,
            )
        };
        let whole = got.min(LONGEST) == len;
        place = Some((
            place.map_or(pc, |(first, _)| first),
            pc.wrapping_add(len as u64),
        ));
        let mut instruction = Instruction::decode(&bytes[..got.min(LONGEST)]).filter(|_| whole);
        if plugin.snp.aps.may_start_at(pc) {
            instruction = Some(Instruction::ApStart);
        }
        if let Some(instruction) =
            instruction.filter(|i| concerns(options.guest, options.check, *i))
        {
            // QEMU does not say when it forgets a block, so this is never freed; there are few.
            let watched = Box::new(Watched {
                instruction,
                pc,
                len: len as u64,
                place: translate(pc),
                block: place.map_or(pc, |(first, _)| first),
            });
            let data = Box::into_raw(watched).cast();
            // SAFETY: the callback takes a `Watched`.
            unsafe {
                qemu_plugin_register_vcpu_insn_exec_cb(insn, on_instruction, REGISTERS_AND_PC, data)
            };
        }
        if check && !plugin.snp.rmp.patches.is_probe(pc) {
            let pc = ptr::without_provenance_mut(pc as usize);
            // SAFETY: the callback takes the PC for what it is, a number.
            unsafe {
                qemu_plugin_register_vcpu_mem_cb(
                    insn,
                    on_access,
                    NO_REGISTERS,
                    LOADS_AND_STORES,
                    pc,
                )
            };
        }
    }
    if let Some((first, end)) = place.filter(|_| check) {
        fetched(&plugin.monitor, first, end);
    }
}

extern "C" fn on_vcpu(_index: c_uint, _data: *mut c_void) {
    let Some(plugin) = PLUGIN.get() else {
        return;
    };
    plugin.handles.get_or_init(|| {
        // SAFETY: a vCPU has been initialised, so QEMU knows its registers.
        let array = unsafe { qemu_plugin_get_registers() };
        // SAFETY: the array holds `len` descriptors, and is not changed meanwhile.
        let descriptors = unsafe {
            std::slice::from_raw_parts(
                (*array).data.cast::<RegisterDescriptor>(),
                (*array).len as usize,
            )
        };
        let handle = |register: Register| {
            let named = |descriptor: &&RegisterDescriptor| {
                // SAFETY: names are C strings that live as long as QEMU.
                let name = unsafe { CStr::from_ptr(descriptor.name) };
                name.to_bytes() == register.name().as_bytes()
            };
            let Some(descriptor) = descriptors.iter().find(named) else {
                fail(&format!(
                    "this QEMU has no x86-64 register '{}'",
                    register.name()
                ));
            };
            descriptor.handle
        };
        let handles = Handles(Register::ALL.map(handle));
        // SAFETY: the array is ours to free, and no longer used.
        unsafe { g_array_free(array, 1) };
        handles
    });
}

extern "C" fn on_exit(_data: *mut c_void) {
    if let Some(plugin) = PLUGIN.get() {
        write_report(&plugin.monitor);
    }
}

fn write_report(monitor: &Monitor) {
    let Some(path) = &monitor.options.report else {
        return;
    };
    if let Err(error) = monitor.report().write(path) {
        say(&format!("coco: the report is lost: {error}"));
    }
}

/// Ends QEMU from a vCPU's thread, without the exit handlers: they would wait for that thread.
fn end(monitor: &Monitor, stop: &Stop) -> ! {
    // Only one vCPU ends the guest, and nobody is to cut its report off.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock();

    say(&stop.message());
    write_report(monitor);
    // SAFETY: it takes any status, and does not return.
    unsafe { libc::_exit(stop.status()) }
}

fn fail(why: &str) -> ! {
    say(&format!("coco: {why}"));
    // SAFETY: as above.
    unsafe { libc::_exit(1) }
}

/// Called by QEMU as it starts.
///
/// # Safety
///
/// `info` and `argc` strings at `argv` are valid during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    info: *const Info,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    // SAFETY: by the caller's promise.
    let (info, words) = unsafe {
        let words = (0..argc as usize).map(|index| CStr::from_ptr(*argv.add(index)));
        (
            &*info,
            words
                .map(|word| word.to_string_lossy().into_owned())
                .collect::<Vec<_>>(),
        )
    };
    let twice = |_| "the plugin is there already: load it once".to_string();
    if let Err(why) = install(info, &words).and_then(|plugin| PLUGIN.set(plugin).map_err(twice)) {
        say(&format!("coco: {why}"));
        return 1;
    }
    // SAFETY: `id` is ours, and the callbacks have the types that version 7 says.
    unsafe {
        qemu_plugin_register_vcpu_init_cb(id, on_vcpu, ptr::null_mut());
        qemu_plugin_register_vcpu_tb_trans_cb(id, on_block, ptr::null_mut());
        qemu_plugin_register_atexit_cb(id, on_exit, ptr::null_mut());
    }
    0
}

fn install(info: &Info, words: &[String]) -> Result<Plugin, String> {
    if !(info.oldest..=info.newest).contains(&VERSION) {
        return Err(format!(
            "this QEMU has version {} to {} of the plugin interface, and the plugin is for \
             version {VERSION}: QEMU 11.1 or later is needed",
            info.oldest, info.newest
        ));
    }
    // SAFETY: QEMU's string is valid during the call.
    let target = unsafe { CStr::from_ptr(info.target) };
    if !info.system || target.to_bytes() != b"x86_64" {
        return Err("TDX and SEV-SNP guests are run by qemu-system-x86_64".into());
    }
    let options = Options::parse(words.iter().map(String::as_str))?;
    Ok(Plugin {
        monitor: Monitor::new(options),
        tdx: Tdx::new(),
        snp: Snp::new(),
        handles: OnceLock::new(),
    })
}
