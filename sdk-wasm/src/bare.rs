//! What `std` would bring and the core is without: an allocator, and an end for panics.
//!
//! `std`'s allocator and its way to tell of a panic are a third of what a browser would download.
//! Nothing here gives memory back to the host: an instance holds one ruleset and goes with it.
#![allow(unsafe_code)]

use core::alloc::{GlobalAlloc, Layout};
use core::arch::wasm32;
use core::cell::UnsafeCell;
use core::ptr;

/// A trap; the host sees an exception. The rules do not panic (lints and tests see to that), memory
/// can run out.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    wasm32::unreachable()
}

#[global_allocator]
static SHELVES: Shelves =
    Shelves(UnsafeCell::new(State { free: [ptr::null_mut(); 32], from: 0, to: 0 }));

/// Blocks of two to the n bytes. Freed ones wait on the shelf of their size, each pointing at the
/// next one; new ones are cut from memory that was never used.
struct Shelves(UnsafeCell<State>);

struct State {
    free: [*mut u8; 32],
    from: usize,
    to: usize,
}

const PAGE: usize = 65_536;
/// Enough for every type of ours.
const ALIGN_MAX: usize = 16;

unsafe extern "C" {
    /// Where the linker's own data ends.
    static __heap_base: u8;
}

// SAFETY: wasm without threads has one thread.
unsafe impl Sync for Shelves {}

/// The shelf of a layout; none for what no memory holds.
fn shelf(layout: Layout) -> Option<usize> {
    let size = layout.size().max(ALIGN_MAX).checked_next_power_of_two()?;
    (layout.align() <= ALIGN_MAX).then_some(size.trailing_zeros() as usize)
}

// SAFETY: blocks are as large as asked for, aligned to 16, and in one hand at a time.
unsafe impl GlobalAlloc for Shelves {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: one thread, and nothing in here allocates.
        let state = unsafe { &mut *self.0.get() };
        let Some(shelf) = shelf(layout) else { return ptr::null_mut() };
        if let Some(first) = state.free.get_mut(shelf)
            && !first.is_null()
        {
            let block = *first;
            // SAFETY: a freed block, into which `dealloc` wrote the next one.
            *first = unsafe { block.cast::<*mut u8>().read() };
            return block;
        }
        if state.to == 0 {
            // SAFETY: only its address is taken.
            state.from = (&raw const __heap_base as usize).next_multiple_of(ALIGN_MAX);
            state.to = wasm32::memory_size(0).saturating_mul(PAGE);
        }
        let Some(end) = state.from.checked_add(1 << shelf) else { return ptr::null_mut() };
        if end > state.to {
            let pages = (end - state.to).div_ceil(PAGE);
            if wasm32::memory_grow(0, pages) == usize::MAX {
                return ptr::null_mut();
            }
            state.to = state.to.saturating_add(pages.saturating_mul(PAGE));
        }
        let block = state.from;
        state.from = end;
        block as *mut u8
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: one thread, and nothing in here allocates.
        let state = unsafe { &mut *self.0.get() };
        if let Some(first) = shelf(layout).and_then(|shelf| state.free.get_mut(shelf)) {
            // SAFETY: whoever frees a block has no more business in it, and it has 16 bytes.
            unsafe { block.cast::<*mut u8>().write(*first) };
            *first = block;
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's layout with a size that it vouches for.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        if shelf(wanted) == shelf(layout) {
            return block;
        }
        // SAFETY: as the trait's own way: a new block, as many bytes as both have, the old one freed.
        unsafe {
            let new = self.alloc(wanted);
            if !new.is_null() {
                ptr::copy_nonoverlapping(block, new, size.min(layout.size()));
                self.dealloc(block, layout);
            }
            new
        }
    }
}
