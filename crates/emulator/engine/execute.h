// Executes the PTX that nvcc made of a kernel, one warp at a time: what the parts share.
//
// A register is an array of 32 lanes, a predicate a word of 32 bits. An instruction is decoded once, into the function
// that does it and the places of its operands, and then executed for all lanes that are at it. Lanes have program
// counters of their own: those at the lowest one go first, until they reach the next higher one, where both go on
// together. Code that nvcc laid out in order thereby meets again where the branches meet.
#pragma once

#include "engine.h"
#include "parse.h"

namespace emu::ptx {

enum class Flow { next, jump, stop };  // to the next instruction, to where the warp was set, or not on

struct Warp;
struct Instruction;
using Handler = Flow (*)(Warp& warp, const Instruction& in, uint32_t mask);

constexpr int kOperands = 14;   // of mma: 4 + 4 + 2 + 4
constexpr size_t kSlot = 64;    // bytes; 16-bit registers take one slot, 32-bit ones two, 64-bit ones four
constexpr uint8_t kFirst = 1;   // a flag: what it means is up to the instruction

struct Instruction {
    Handler run = nullptr;
    int64_t immediate = 0;
    uint16_t slot[kOperands] = {};
    uint16_t guard = 0;
    enum Guard : uint8_t { always, when, unless } guarded = always;
    uint8_t flags = 0;
    uint32_t target = 0;  // of a branch
    const char* file = nullptr;
    int line = 0;
    Site site() const { return {file ? file : "ptx", line}; }
};

// What a constant counts from: nothing, the start of shared memory, or that of the kernel's parameters.
enum class Base : uint8_t { none, shared, parameters };

struct Constant {
    uint16_t slot;
    char kind;  // p, h, w, d: see decode.h
    uint64_t value;
    Base base;
};

// Special registers, by the value they have.
enum class Special : uint8_t { tid, ntid, ctaid, nctaid, laneid, warpid };
struct SpecialRegister {
    Special what;
    int axis;
    uint16_t slot;
};

// A product of a warpgroup, wgmma: more operands than an instruction holds. Its registers keep their slots.
struct Product {
    uint32_t columns = 0;
    bool bf16 = false, a_in_registers = false, across_a = false, across_b = false, negate_a = false, negate_b = false;
    std::vector<uint16_t> sums;
    uint16_t a[4] = {};
};

struct Code {
    std::vector<Instruction> instructions;
    std::vector<std::string> texts;  // of the instructions
    std::vector<Constant> constants;
    std::vector<SpecialRegister> specials;
    std::vector<Product> products;
    uint32_t slots = 0;  // that a warp's registers take
    std::vector<uint32_t> pointers;  // offsets of parameters that are used as addresses
    uint32_t static_shared = 0, shared_align = 0;
    bool uses_dynamic = false;
    uint32_t dynamic_at = 0;  // from the start of shared memory
    std::string error;        // why it cannot run
};

// The kernel's code, decoded on first use.
const Code& code_of(Kernel& kernel);

// A cp.async that was issued and that some of its lanes have not waited for.
struct Copies {
    uint32_t lanes;
    uint32_t target[kWarp], group[kWarp], bytes[kWarp];  // so many of the source, then zeros
    const char* source[kWarp];
    Site site;
};

// A product that a warp has issued and not waited for.
struct PendingProduct {
    const Instruction* in = nullptr;
    uint64_t a = 0, b = 0;  // descriptors of matrices
    uint32_t group = 0;
    bool adds = false, done = false;
    std::shared_ptr<std::vector<float>> sums;  // by register and lane
};
struct IssuedProduct {
    const Instruction* in;
    uint64_t a, b;
};

struct Warp {
    char* registers = nullptr;
    uint32_t index = 0;
    uint32_t at[kWarp];      // where each lane is
    uint32_t live = 0;       // not exited
    uint32_t parked = 0;     // waiting for other lanes of the warp
    uint32_t arrived = 0;    // waiting at the block's barrier
    uint32_t named = 0;      // waiting at a named barrier
    uint32_t named_barrier = 0;
    uint32_t polled = 0;     // gave way to the others
    uint32_t predicates = 0;  // brought to the block's barrier
    uint32_t wanted[kWarp];  // the lanes that a parked lane waits for
    // The lanes that execute together now, where they are, and where they would meet others.
    uint32_t mask = 0, now = 0, limit = 0;
    uint32_t groups[kWarp];  // cp.async groups that each lane committed
    std::vector<Copies> copies;
    std::vector<PendingProduct> products;
    uint32_t product_groups = 0, products_issued = 0;
    bool products_fenced = false;  // since their registers were written
    uint32_t register_count = 0;   // of each thread; 0 when it is not known
    uint32_t register_changes = 0;  // setmaxnreg

    template <class T>
    T* lanes(uint16_t slot) const {
        return reinterpret_cast<T*>(registers + size_t(slot) * kSlot);
    }
    uint32_t& predicate(uint16_t slot) const { return *lanes<uint32_t>(slot); }
};

constexpr uint32_t kNamedBarriers = 16;
struct NamedBarrier {
    uint32_t threads = 0, arrived = 0;
    Clock clock;
};

// What all warps of the running block share.
struct Block {
    const Kernel* kernel = nullptr;
    const Code* code = nullptr;
    const char* parameters = nullptr;
    std::vector<Warp> warps;
    uint32_t shared_low = 0, shared_bytes = 0;
    Site barrier_site;  // of the first to arrive
    bool waited = false;  // for the kernels before this one: some thread has
    NamedBarrier named[kNamedBarriers];
    uint64_t uncounted = 0;  // of what was executed, no instructions
    std::vector<std::vector<IssuedProduct>> products;  // by warpgroup
    std::vector<std::vector<const Instruction*>> register_changes;  // by warpgroup
    int64_t free_registers = 0;  // where the warps' register counts are known
};
extern Block block;

// ---- run.cc
// The parameters of the running kernel: their offset where the address lies in them, else -1.
int64_t parameter_offset(uint64_t address, uint32_t bytes);
uint64_t random_below(uint64_t n);
// Makes `lane` the running thread, in whose name accesses are checked and faults recorded.
inline void select(const Warp& warp, uint32_t lane) { self = &threads[warp.index * kWarp + lane]; }
// Brings the lanes that an instruction needs together: the mask to go on with, or 0 when `mask` was parked.
uint32_t gather(Warp& warp, uint32_t mask, uint32_t needed);
// Has a lane's thread not waited for the kernels before this one, and sees what was there before them?
inline bool is_stale(const Warp& warp, uint32_t lane) { return run.stale && threads[warp.index * kWarp + lane].early; }
// Something happened that a warp may have polled for.
void note_progress();
// Ends the warp's turn behind this instruction: it polls for something that others do.
Flow give_way(Warp& warp);

// ---- accesses.cc
void forget_allocation();
// Bounds and alignment of one lane's access (engine.h has what it may be); they do not return when it is wrong.
char* shared_at(Warp& warp, const Instruction& in, uint32_t lane, uint32_t address, uint32_t bytes, unsigned access);
void check_global(Warp& warp, const Instruction& in, uint32_t lane, uint64_t address, uint32_t bytes, unsigned access);
// Of any size, bounds only.
void check_global_range(Warp& warp, const Instruction& in, uint32_t lane, uint64_t address, uint32_t bytes,
                        unsigned access);

// ---- copies.cc
// The checker's orders start over: what was noted of them means nothing any more.
void forget_orders();
void begin_block_copies();
bool bulk_progress();

// Lines of `width` bytes (32, 64, 128) have their chunks of 16 exchanged by where the line lies; 0 is no swizzle.
inline uint32_t swizzled(uint32_t address, uint32_t width) {
    return width ? address ^ (address >> 3 & (width - 1) & ~15u) : address;
}

constexpr uint32_t kGroupWarps = 4;  // of a warpgroup

// The lanes that wait at barriers.
inline uint32_t waiting(const Warp& w) { return w.arrived | w.named; }

inline bool has(uint32_t mask, uint32_t lane) { return mask >> lane & 1; }

// for (each_lane(mask)) would read better than what C++ has; this is the loop over the lanes of a mask.
template <class F>
inline void each_lane(uint32_t mask, F f) {
    for (uint32_t rest = mask; rest; rest &= rest - 1) f(uint32_t(__builtin_ctz(rest)));
}

}  // namespace emu::ptx
