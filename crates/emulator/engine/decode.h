// From statements to instructions: the table of opcodes, and what each family contributes to it.
#pragma once

#include "execute.h"

namespace emu::ptx {

// How the operands of an opcode are bound to slots, one letter each, in their order. Destinations are upper case.
//   p h w d   registers of 1, 16, 32, 64 bits, or a constant
//   n         a predicate that may be negated with `!`: the bit of its position among sources is set in the flags
//   P also takes `p|q`: the second destination goes to the slot behind the last operand, and kFirst is set
//   W also takes `d|p`, in the same way
//   a         an address in shared memory, `[register+offset]`: the offset becomes the immediate
//   g         one in global memory
//   i         a number, which becomes the immediate
struct Form {
    Handler run = nullptr;
    const char* operands = "";
};

using Table = std::unordered_map<std::string, Form>;

// Adds one form under each of the names, which are separated by spaces.
void enter(Table& table, const char* names, Form form);

Handler table_entry(const char* name);  // null when there is none

void enter_integers(Table& table);     // integers.cc
void enter_floats(Table& table);       // floats.cc
void enter_conversions(Table& table);  // conversions.cc
void enter_collectives(Table& table);  // collectives.cc
void enter_products(Table& table);     // products.cc
void enter_copies(Table& table);       // copies.cc
void enter_control(Table& table);      // run.cc

// Loads, stores and atomics are too many combinations for a table. What is read at a generic address is a parameter.
enum class Space { global, shared, parameter };
struct Access {
    bool store = false, is_signed = false;
    Space space = Space::global;
    uint32_t bytes = 0;      // of an element in memory
    char kind = 0;           // of the registers
    uint32_t count = 1;      // elements of the vector
    bool acquire = false, release = false;
};
Handler access_handler(const Access& access);        // accesses.cc; null when there is none
Handler parameter_handler(const std::string& type);  // ld.param
struct Atomic {
    std::string operation, type;
    Space space = Space::global;
};
// The memory order (Order) is in the upper half of the instruction's flags.
Handler atomic_handler(const Atomic& atomic);
Handler matrix_load_handler(uint32_t matrices, bool transposed);  // matrices.cc
Handler matrix_multiply_handler(bool bf16);
Handler product_handler();  // products.cc
Handler touch_handler();    // behind what writes a product's register
Handler tensor_copy_handler();  // copies.cc
Handler branch_handler();  // run.cc
Handler exit_handler();

template <class T>
constexpr char kind_of() {
    return sizeof(T) == 2 ? 'h' : sizeof(T) == 4 ? 'w' : 'd';
}

// The operand letters of a lane-wise function, as text.
template <class D, class... S>
struct Letters {
    static constexpr char text[] = {char(kind_of<D>() - 32), kind_of<S>()..., 0};
};
template <class D, class... S>
constexpr char Letters<D, S...>::text[];

// One result per lane, from the same lane of the sources. Sources and result may be the same register, never half of
// one another, so the lanes are independent.
template <class Op, class D, class A>
Flow unary(Warp& w, const Instruction& in, uint32_t mask) {
    D* d = w.lanes<D>(in.slot[0]);
    const A* a = w.lanes<A>(in.slot[1]);
    if (mask == kAll) {
#pragma GCC ivdep
        for (int i = 0; i < kWarp; ++i) d[i] = D(Op::f(a[i]));
    } else {
#pragma GCC ivdep
        for (int i = 0; i < kWarp; ++i) {
            const D result = D(Op::f(a[i]));
            d[i] = mask >> i & 1 ? result : d[i];
        }
    }
    return Flow::next;
}

template <class Op, class D, class A, class B>
Flow binary(Warp& w, const Instruction& in, uint32_t mask) {
    D* d = w.lanes<D>(in.slot[0]);
    const A* a = w.lanes<A>(in.slot[1]);
    const B* b = w.lanes<B>(in.slot[2]);
    if (mask == kAll) {
#pragma GCC ivdep
        for (int i = 0; i < kWarp; ++i) d[i] = D(Op::f(a[i], b[i]));
    } else {
#pragma GCC ivdep
        for (int i = 0; i < kWarp; ++i) {
            const D result = D(Op::f(a[i], b[i]));
            d[i] = mask >> i & 1 ? result : d[i];
        }
    }
    return Flow::next;
}

template <class Op, class D, class A, class B, class C>
Flow ternary(Warp& w, const Instruction& in, uint32_t mask) {
    D* d = w.lanes<D>(in.slot[0]);
    const A* a = w.lanes<A>(in.slot[1]);
    const B* b = w.lanes<B>(in.slot[2]);
    const C* c = w.lanes<C>(in.slot[3]);
    if (mask == kAll) {
#pragma GCC ivdep
        for (int i = 0; i < kWarp; ++i) d[i] = D(Op::f(a[i], b[i], c[i]));
    } else {
#pragma GCC ivdep
        for (int i = 0; i < kWarp; ++i) {
            const D result = D(Op::f(a[i], b[i], c[i]));
            d[i] = mask >> i & 1 ? result : d[i];
        }
    }
    return Flow::next;
}

template <class Op, class D, class A>
Form form() {
    return {unary<Op, D, A>, Letters<D, A>::text};
}
template <class Op, class D, class A, class B>
Form form() {
    return {binary<Op, D, A, B>, Letters<D, A, B>::text};
}
template <class Op, class D, class A, class B, class C>
Form form() {
    return {ternary<Op, D, A, B, C>, Letters<D, A, B, C>::text};
}

}  // namespace emu::ptx
