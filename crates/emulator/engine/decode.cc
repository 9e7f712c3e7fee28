// Binds statements to handlers and registers to slots.
//
// nvcc numbers a new register for nearly every value, thousands in a large kernel: as many slots would not fit a cache.
// So registers whose values are never needed at the same time share a slot (liveness over the control flow, then one
// scan over intervals). Lanes that diverge are no obstacle: a slot holds one value for each lane, and each lane follows
// the control flow.
#include "decode.h"

#include <algorithm>
#include <cstdlib>

namespace emu::ptx {
namespace {

constexpr uint32_t kNone = ~0u;

const Table& table() {
    static const Table built = [] {
        Table t;
        enter_integers(t);
        enter_floats(t);
        enter_conversions(t);
        enter_collectives(t);
        enter_products(t);
        enter_copies(t);
        enter_control(t);
        return t;
    }();
    return built;
}

char kind_of_type(const std::string& type) {
    if (type == "pred") return 'p';
    const size_t digit = type.find_first_of("0123456789");
    switch (digit == std::string::npos ? 0 : atoi(type.c_str() + digit)) {
        case 8:
        case 16: return 'h';
        case 32: return 'w';
        case 64: return 'd';
    }
    return 0;
}

int slots_of(char kind) { return kind == 'd' ? 4 : kind == 'w' ? 2 : 1; }

// 0f3F800000, 0d3FF0000000000000, 42, -1, 0x1F, 7U.
bool is_number(const std::string& s, uint64_t& value) {
    if ((s.size() == 10 || s.size() == 18) && s[0] == '0' && strchr("fFdD", s[1])) {
        char* end = nullptr;
        value = strtoull(s.c_str() + 2, &end, 16);
        return *end == 0;
    }
    const size_t first = s[0] == '-' ? 1 : 0;
    if (s.size() <= first || !isdigit(static_cast<unsigned char>(s[first]))) return false;
    char* end = nullptr;
    value = first ? uint64_t(strtoll(s.c_str(), &end, 0)) : strtoull(s.c_str(), &end, 0);
    return *end == 0 || *end == 'U';
}

// A register, a constant or a special register before it has its slots.
struct Value {
    char kind;
    bool kept;  // holds its value for the whole launch
    bool of_product = false;
    uint32_t first = kNone, last = 0;
    uint16_t slot = 0;
};

struct Bound {
    uint32_t reads[kOperands + 1], writes[kOperands];
    int read_count = 0, write_count = 0;
};

class Decoder {
   public:
    Decoder(const Kernel& kernel, Code& code) : kernel_(kernel), code_(code) {}

    void run() {
        if (!parse_body(kernel_, body_, code_.error)) return;
        for (const auto& [name, type] : body_.registers) {
            const char kind = kind_of_type(type);
            if (!kind) return fail("registers of type ." + type + " are not supported");
            registers_[name] = value(kind, false);
        }
        place_shared();
        find_product_registers();
        for (const Statement& s : body_.statements) {
            statement_ = &s;
            starts_.push_back(uint32_t(code_.instructions.size()));
            decode(s);
            if (!code_.error.empty()) return;
        }
        // Falling off the end is leaving.
        starts_.push_back(uint32_t(code_.instructions.size()));
        statement_ = nullptr;
        begin({});
        now_.run = exit_handler();
        finish("ret");
        resolve_branches();
        if (code_.error.empty()) assign_slots();
    }

   private:
    void fail(const std::string& why) {
        if (!code_.error.empty()) return;
        code_.error = why;
        if (!statement_) return;
        code_.error += ": `" + statement_->text + "`";
        if (statement_->file) code_.error += " at " + Site{statement_->file, statement_->line}.text();
    }

    uint32_t value(char kind, bool kept) {
        values_.push_back({kind, kept});
        return uint32_t(values_.size() - 1);
    }

    // ---- shared memory

    void place(const SharedArray& array) {
        uint32_t& at = code_.static_shared;
        at = (at + array.align - 1) / array.align * array.align;
        code_.shared_align = std::max(code_.shared_align, array.align);
        shared_[array.name] = at;
        at += array.bytes;
    }

    // Dynamic memory lies behind all that is static, with the alignment that its declaration asks for: 128 at most.
    void place_shared() {
        auto used = [&](const SharedArray& a) { return kernel_.text.find(a.name) != std::string::npos; };
        for (const SharedArray& a : kernel_.module->shared) {
            if (!a.dynamic && used(a)) place(a);
        }
        for (const SharedArray& a : body_.shared) place(a);
        for (const SharedArray& a : kernel_.module->shared) {
            if (!a.dynamic || !used(a)) continue;
            const uint32_t align = std::min(a.align, 128u);
            code_.uses_dynamic = true;
            code_.dynamic_at = (code_.static_shared + align - 1) / align * align;
            shared_[a.name] = code_.dynamic_at;
        }
    }

    // ---- operands

    uint32_t constant(char kind, uint64_t bits, Base base) {
        const auto key = std::make_tuple(kind, bits, base);
        auto found = constants_.find(key);
        if (found != constants_.end()) return found->second;
        return constants_[key] = value(kind, true);
    }

    const Parameter* parameter(const std::string& name) const {
        for (const Parameter& p : kernel_.parameters) {
            if (p.name == name) return &p;
        }
        return nullptr;
    }

    uint32_t special(const std::string& name) {
        static const std::map<std::string, Special> known = {
            {"%tid", Special::tid},       {"%ntid", Special::ntid},     {"%ctaid", Special::ctaid},
            {"%nctaid", Special::nctaid}, {"%laneid", Special::laneid}, {"%warpid", Special::warpid}};
        const size_t dot = name.find('.');
        auto found = known.find(name.substr(0, dot));
        if (found == known.end()) return kNone;
        auto& id = specials_[name];
        if (!id) {
            id = value('w', true) + 1;
            const int axis = dot == std::string::npos ? 0 : name[dot + 1] - 'x';
            special_list_.push_back({found->second, axis, id - 1});
        }
        return id - 1;
    }

    uint32_t source(const std::string& text, char kind) {
        auto found = registers_.find(text);
        if (found != registers_.end()) {
            if (values_[found->second].kind != kind) fail(text + " has another size");
            return found->second;
        }
        uint64_t bits = 0;
        if (is_number(text, bits)) {
            if (kind == 'p') bits = bits ? kAll : 0;
            if (kind == 'h') bits &= 0xffff;
            if (kind == 'w') bits &= kAll;
            return constant(kind, bits, Base::none);
        }
        if (text[0] == '%' && kind == 'w') {
            const uint32_t id = special(text);
            if (id != kNone) return id;
        }
        auto array = shared_.find(text);
        if (array != shared_.end() && kind != 'h' && kind != 'p') return constant(kind, array->second, Base::shared);
        const Parameter* p = parameter(text);
        if (p && kind == 'd') return constant(kind, p->offset, Base::parameters);
        fail("the operand " + text + " is not known");
        return 0;
    }

    void read(int operand, const std::string& text, char kind) {
        const uint32_t id = source(text, kind);
        bound_.reads[bound_.read_count++] = id;
        ids_[operand] = id;
    }

    void write(int operand, const std::string& text, char kind) {
        uint32_t id = 0;
        loaded_.erase(text);
        auto found = registers_.find(text);
        if (text == "_") {
            id = value(kind, false);
        } else if (found == registers_.end() || values_[found->second].kind != kind) {
            return fail(text + " is no register of this size");
        } else {
            id = found->second;
        }
        bound_.writes[bound_.write_count++] = id;
        ids_[operand] = id;
    }

    void set_immediate(int64_t number) {
        if (now_.immediate) fail("more than one offset or number");
        now_.immediate = number;
    }

    // `[register+offset]`, `[array]`.
    void address(int operand, const std::string& text, char kind) {
        if (text.size() < 2 || text[0] != '[') return fail(text + " is no address");
        std::string base = trimmed(text.substr(1, text.size() - 2));
        const size_t plus = base.find('+');
        if (plus != std::string::npos) {
            set_immediate(strtoll(base.c_str() + plus + 1, nullptr, 0));
            base = trimmed(base.substr(0, plus));
        }
        if (kind == 'd') note_pointer(base);
        read(operand, base, kind);
    }

    static std::vector<std::string> elements(const std::string& text) {
        if (text[0] != '{') return {text};
        return split_list(text.substr(1, text.size() - 2), ',');
    }

    // ---- statements

    void begin(const Statement& s) {
        now_ = Instruction();
        bound_ = Bound();
        std::fill(ids_, ids_ + kOperands, kNone);
        now_.file = s.file;
        now_.line = s.line;
        guard_ = kNone;
        if (s.guard.empty()) return;
        guard_ = source(s.guard, 'p');
        bound_.reads[bound_.read_count++] = guard_;
        now_.guarded = s.unless ? Instruction::unless : Instruction::when;
    }

    void finish(const std::string& text) {
        append(text);
        const bool touches = std::any_of(bound_.writes, bound_.writes + bound_.write_count,
                                         [&](uint32_t id) { return values_[id].of_product; });
        if (!touches) return;
        // Products that follow need a fence.
        Instruction note;
        note.run = touch_handler();
        note.guarded = now_.guarded;
        now_ = note;
        bound_ = Bound();
        if (guard_ != kNone) bound_.reads[bound_.read_count++] = guard_;
        std::fill(ids_, ids_ + kOperands, kNone);
        append(text);
    }

    void append(const std::string& text) {
        code_.instructions.push_back(now_);
        code_.texts.push_back(text);
        bounds_.push_back(bound_);
        guards_.push_back(guard_);
        all_ids_.insert(all_ids_.end(), ids_, ids_ + kOperands);
    }

    void emit(const Statement& s, const std::string& opcode, const std::vector<std::string>& operands) {
        begin(s);
        decode_form(opcode, operands);
        finish(s.text);
    }

    // A register of its own for a step between.
    std::string temporary(char kind) {
        const std::string name = "between@" + std::to_string(values_.size());
        registers_[name] = value(kind, false);
        return name;
    }

    char register_kind(const std::string& name) const {
        auto found = registers_.find(name);
        return found == registers_.end() ? 0 : values_[found->second].kind;
    }

    // The registers of a conversion between integers may be wider than its types (section 9.4.1): the upper part of a
    // source is left out, and a result is extended by its type's sign.
    bool decode_wide_conversion(const Statement& s, const std::vector<std::string>& parts) {
        if (parts.size() != 3 || s.operands.size() != 2 || !strchr("us", parts[1][0]) || !strchr("us", parts[2][0]))
            return false;
        const char to = kind_of_type(parts[1]), from = kind_of_type(parts[2]);
        const char target = register_kind(s.operands[0]), given = register_kind(s.operands[1]);
        const bool narrow = given && slots_of(given) > slots_of(from);
        const bool widen = target && slots_of(target) > slots_of(to);
        if (!narrow && !widen) return false;
        auto bits = [](char kind) { return std::to_string(kind == 'd' ? 64 : kind == 'w' ? 32 : 16); };
        std::string source = s.operands[1], result = s.operands[0];
        if (narrow) {
            source = temporary(from);
            emit(s, "cvt.u" + bits(from) + ".u" + bits(given), {source, s.operands[1]});
        }
        if (widen) result = temporary(to);
        emit(s, to == from ? "mov.b" + bits(to) : s.opcode, {result, source});
        const std::string sign(1, parts[1][0]);
        if (widen) emit(s, "cvt." + sign + bits(target) + "." + sign + bits(to), {s.operands[0], result});
        return true;
    }

    void decode(const Statement& s) {
        const std::vector<std::string> parts = split_list(s.opcode, '.');
        const std::string& name = parts[0];
        if (name == "cvt" && decode_wide_conversion(s, parts)) return;
        begin(s);
        if (name == "bra") {
            branches_.push_back({uint32_t(code_.instructions.size()), s.operands.empty() ? "" : s.operands[0]});
            now_.run = branch_handler();
        } else if ((name == "ld" || name == "st") && parts.size() > 1) {
            decode_access(s, parts);
        } else if (name == "atom" || name == "red") {
            decode_atomic(s, parts);
        } else if (name == "ldmatrix") {
            decode_matrix_load(s);
        } else if (name == "mma") {
            decode_matrix_multiply(s);
        } else if (name == "wgmma" && parts.size() > 1 && parts[1] == "mma_async") {
            decode_product(s, parts);
        } else if (name == "mov" && s.operands.size() == 2 && (s.operands[0][0] == '{' || s.operands[1][0] == '{')) {
            decode_vector_move(s);
        } else if (s.opcode.compare(0, 11, "cp.async.cg") == 0 && s.operands.size() == 3) {
            decode_form(s.opcode + ".whole", s.operands);
        } else if (s.opcode.compare(0, 21, "cp.async.bulk.tensor.") == 0) {
            decode_tensor_copy(s, parts);
        } else if (s.opcode == "bar.sync" || s.opcode == "barrier.sync.aligned") {
            decode_form(s.operands.size() == 2 ? s.opcode + ".counted" : s.opcode, s.operands);
        } else if (name == "mbarrier" && s.operands.size() == (parts[1] == "arrive" ? 3u : 4u)) {
            decode_form(table().count(s.opcode + ".more") ? s.opcode + ".more" : s.opcode, s.operands);
        } else {
            decode_form(s.opcode, s.operands);
        }
        if (code_.error.empty() && !now_.run) fail("unknown instruction");
        finish(s.text);
    }

    // A parameter that is used as an address is a pointer; PTX does not say so where it declares it.
    void note_pointer(const std::string& name) {
        auto found = loaded_.find(name);
        if (found == loaded_.end()) return;
        code_.pointers.push_back(found->second);
        loaded_.erase(found);
    }

    void decode_form(const std::string& opcode, const std::vector<std::string>& operands) {
        if (opcode == "cvta.to.global.u64" && operands.size() == 2) note_pointer(operands[1]);
        auto found = table().find(opcode);
        if (found == table().end()) return fail("unknown instruction");
        const char* letters = found->second.operands;
        const int count = int(strlen(letters));
        if (int(operands.size()) != count) return fail("another number of operands is expected");
        now_.run = found->second.run;
        for (int i = 0; i < count; ++i) bind(i, letters[i], operands[size_t(i)], count);
        if (opcode.compare(0, 13, "cp.async.bulk") == 0 && now_.immediate) fail("an offset is not supported here");
    }

    void bind(int i, char letter, const std::string& operand, int count) {
        const size_t bar = operand.find('|');
        switch (letter) {
            case 'P':
            case 'W':
                if (bar != std::string::npos) {
                    write(i, trimmed(operand.substr(0, bar)), char(letter + 32));
                    write(count, trimmed(operand.substr(bar + 1)), 'p');
                    now_.flags |= kFirst;
                    return;
                }
                [[fallthrough]];
            case 'H':
            case 'D': return write(i, operand, char(letter + 32));
            case 'n':
                if (operand[0] == '!') now_.flags |= uint8_t(1 << (i + 1));
                return read(i, operand[0] == '!' ? trimmed(operand.substr(1)) : operand, 'p');
            case 'a': return address(i, operand, 'w');
            case 'g': return address(i, operand, 'd');
            case 'i': {
                uint64_t number = 0;
                if (!is_number(operand, number)) return fail(operand + " is no number");
                return set_immediate(int64_t(number));
            }
            case '_': return;  // takes no part
            default: return read(i, operand, letter);
        }
    }

    void decode_vector_move(const Statement& s) {
        const bool wide = s.opcode == "mov.b64", into = s.operands[0][0] == '{';
        if (!wide && s.opcode != "mov.b32") return fail("unknown instruction");
        const std::vector<std::string> parts = elements(s.operands[into ? 0 : 1]);
        if (parts.size() != 2) return fail("unknown instruction");
        const std::string form = s.opcode + (into ? ".unpack" : ".pack");
        if (into) {
            decode_form(form, {parts[0], parts[1], s.operands[1]});
        } else {
            decode_form(form, {s.operands[0], parts[0], parts[1]});
        }
    }

    // Says what the modifiers of a load, store or atomic mean; false for one that is not known. Cache hints mean
    // nothing here, and everything is coherent at once.
    bool modifier(const std::string& m, Access& access) {
        static const char* const ignored[] = {"global", "nc",  "ca",  "cg",   "cs",      "cv", "lu", "wb", "wt", "weak",
                                              "relaxed", "gpu", "sys", "cta", "cluster", "volatile"};
        for (const char* known : ignored) {
            if (m == known) return true;
        }
        if (m == "param" || m == "param::entry") return access.space = Space::parameter, true;
        if (m == "shared" || m == "shared::cta") return access.space = Space::shared, true;
        if (m == "acquire") return access.acquire = true;
        if (m == "release") return access.release = true;
        if (m == "acq_rel") return access.acquire = access.release = true;
        return m.compare(0, 4, "L1::") == 0 || m.compare(0, 4, "L2::") == 0;
    }

    void decode_access(const Statement& s, const std::vector<std::string>& parts) {
        Access access;
        access.store = parts[0] == "st";
        const std::string& type = parts.back();
        if (s.operands.size() < 2) return fail("another number of operands is expected");
        if (parts[1] == "param" && parts.size() == 3 && !access.store && decode_parameter(s, type)) return;
        bool space = false;
        for (size_t i = 1; i + 1 < parts.size(); ++i) {
            if (parts[i] == "v2" || parts[i] == "v4") {
                access.count = parts[i] == "v2" ? 2 : 4;
            } else if (!modifier(parts[i], access)) {
                return fail("unknown instruction");
            }
            if (parts[i] == "nc") now_.flags |= kFirst;  // constant while the kernel runs
            space |= parts[i] == "global" || access.space != Space::global;
        }
        if (!space) access.space = Space::parameter;  // the only one with generic addresses
        access.is_signed = type[0] == 's';
        access.bytes = uint32_t(atoi(type.c_str() + 1)) / 8;
        const std::vector<std::string> list = elements(s.operands[access.store ? 1 : 0]);
        if (list.size() != access.count) return fail("the vector has another length");
        access.kind = kind_of_type(type);
        for (const std::string& element : list) {
            auto found = registers_.find(element);
            if (found != registers_.end()) access.kind = values_[found->second].kind;
        }
        for (size_t i = 0; i < list.size(); ++i) {
            if (access.store) {
                read(int(i), list[i], access.kind);
            } else {
                write(int(i), list[i], access.kind);
            }
        }
        const std::string& at = s.operands[access.store ? 0 : 1];
        address(4, at, access.space == Space::shared ? 'w' : 'd');
        now_.run = access_handler(access);
        if (access.space == Space::parameter && access.bytes == 8) note_loaded(list, at);
    }

    // Registers that now hold a parameter, or its parts: pointers, when they are used as addresses.
    void note_loaded(const std::vector<std::string>& list, const std::string& at) {
        const Parameter* p = parameter(base_of(at));
        if (!p) return;
        for (size_t i = 0; i < list.size(); ++i)
            loaded_[list[i]] = p->offset + uint32_t(now_.immediate) + uint32_t(8 * i);
    }

    static std::string base_of(const std::string& address) {
        return trimmed(address.substr(1, address.find_first_of("+]") - 1));
    }

    // One value at a place that is known; false when the address is a register's.
    bool decode_parameter(const Statement& s, const std::string& type) {
        const std::string name = base_of(s.operands[1]);
        const size_t plus = s.operands[1].find('+');
        const int64_t offset = plus == std::string::npos ? 0 : strtoll(s.operands[1].c_str() + plus + 1, nullptr, 0);
        const Parameter* p = parameter(name);
        if (!p) {
            if (!registers_.count(name)) fail("there is no parameter " + name);
            return registers_.count(name) == 0;
        }
        now_.immediate = p->offset + offset;
        now_.run = parameter_handler(type);
        write(0, s.operands[0], kind_of_type(type));
        if (type == "u64" || type == "b64") loaded_[s.operands[0]] = uint32_t(now_.immediate);
        return true;
    }

    // `cp.async.bulk.tensor.2d.shared::cluster.global[.tile].mbarrier::complete_tx::bytes[.L2::cache_hint] [target],
    // [map, {coordinates}], [mbarrier][, policy]`.
    void decode_tensor_copy(const Statement& s, std::vector<std::string> parts) {
        const bool hint = parts.back() == "L2::cache_hint";
        if (hint) parts.pop_back();
        if (parts.size() == 9 && parts[7] == "tile") parts.erase(parts.begin() + 7);
        const bool to_shared = parts.size() == 8 && (parts[5] == "shared::cluster" || parts[5] == "shared::cta");
        if (!to_shared || parts[6] != "global" || parts[7] != "mbarrier::complete_tx::bytes" || parts[4].size() != 2 ||
            parts[4][0] < '1' || parts[4][0] > '5' || parts[4][1] != 'd')
            return fail("unknown instruction");
        if (s.operands.size() != (hint ? 4u : 3u)) return fail("another number of operands is expected");
        const std::string& source = s.operands[1];
        const std::vector<std::string> tensor = split_list(source.substr(1, source.size() - 2), ',');
        const size_t dimensions = size_t(parts[4][0] - '0');
        if (source[0] != '[' || tensor.size() != 2 || elements(tensor[1]).size() != dimensions)
            return fail("another number of coordinates is expected");
        address(0, s.operands[0], 'w');
        address(1, "[" + tensor[0] + "]", 'd');
        for (size_t d = 0; d < dimensions; ++d) read(2 + int(d), elements(tensor[1])[d], 'w');
        address(7, s.operands[2], 'w');
        if (hint) read(8, s.operands[3], 'd');
        if (now_.immediate) return fail("an offset is not supported here");
        now_.immediate = int64_t(dimensions);
        now_.run = tensor_copy_handler();
    }

    void decode_atomic(const Statement& s, const std::vector<std::string>& parts) {
        Atomic atomic;
        Access access;
        const bool returns = parts[0] == "atom";
        for (size_t i = 1; i + 1 < parts.size(); ++i) {
            static const char* const operations[] = {"add", "min", "max", "exch", "cas", "and", "or", "xor"};
            const bool operation =
                std::find(std::begin(operations), std::end(operations), parts[i]) != std::end(operations);
            if (operation) {
                atomic.operation = parts[i];
            } else if (!modifier(parts[i], access)) {
                return fail("unknown instruction");
            }
        }
        atomic.type = parts.back();
        atomic.space = access.space;
        if (atomic.space == Space::parameter) return fail("unknown instruction");
        const int order = (access.acquire ? kAcquire : 0) | (access.release ? kRelease : 0);
        now_.flags = uint8_t(order << 4);
        const char kind = kind_of_type(atomic.type);
        const size_t first = returns ? 1 : 0, sources = atomic.operation == "cas" ? 2 : 1;
        if (s.operands.size() != first + 1 + sources) return fail("another number of operands is expected");
        if (returns) {
            write(0, s.operands[0], kind);
            now_.flags |= kFirst;
        }
        address(1, s.operands[first], atomic.space == Space::shared ? 'w' : 'd');
        for (size_t i = 0; i < sources; ++i) read(2 + int(i), s.operands[first + 1 + i], kind);
        now_.run = atomic_handler(atomic);
    }

    void decode_matrix_load(const Statement& s) {
        const std::string stem = "ldmatrix.sync.aligned.m8n8.x";
        if (s.opcode.compare(0, stem.size(), stem) != 0 || s.operands.size() != 2) return fail("unknown instruction");
        const uint32_t matrices = uint32_t(s.opcode[stem.size()] - '0');
        const std::string rest = s.opcode.substr(stem.size() + 1);
        const bool transposed = rest.compare(0, 6, ".trans") == 0;
        const std::string tail = transposed ? rest.substr(6) : rest;
        if (tail != ".shared.b16" && tail != ".shared::cta.b16") return fail("unknown instruction");
        const std::vector<std::string> list = elements(s.operands[0]);
        if (list.size() != matrices) return fail("the vector has another length");
        for (size_t i = 0; i < list.size(); ++i) write(int(i), list[i], 'w');
        address(4, s.operands[1], 'w');
        now_.run = matrix_load_handler(matrices, transposed);
    }

    void decode_matrix_multiply(const Statement& s) {
        const bool bf16 = s.opcode == "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32";
        if ((!bf16 && s.opcode != "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32") || s.operands.size() != 4)
            return fail("unknown instruction");
        int slot = 0;
        for (size_t o = 0; o < 4; ++o) {
            const std::vector<std::string> list = elements(s.operands[o]);
            if (list.size() != (o == 2 ? 2u : 4u)) return fail("the vector has another length");
            for (const std::string& element : list) {
                if (o == 0) {
                    write(slot++, element, 'w');
                } else {
                    read(slot++, element, 'w');
                }
            }
        }
        now_.run = matrix_multiply_handler(bf16);
    }

    // A register of a product is written or read later than its instruction, so its slot is nobody else's.
    void find_product_registers() {
        for (const Statement& s : body_.statements) {
            if (s.opcode.compare(0, 15, "wgmma.mma_async") != 0) continue;
            for (size_t i = 0; i < s.operands.size() && i < 2; ++i) {
                if (s.operands[i][0] != '{') continue;
                for (const std::string& element : elements(s.operands[i])) {
                    auto found = registers_.find(element);
                    if (found != registers_.end())
                        values_[found->second].kept = values_[found->second].of_product = true;
                }
            }
        }
    }

    uint32_t product_register(const std::string& name) {
        auto found = registers_.find(name);
        if (found == registers_.end() || values_[found->second].kind != 'w') return fail(name + " is no register"), 0;
        return found->second;
    }

    bool decode_flag(const std::string& operand, const char* off, const char* on) {
        if (operand != off && operand != on) fail(operand + " is no flag");
        return operand == on;
    }

    // `wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {d...}, a, b, scale-d, scale-a, scale-b[, trans-a], trans-b`.
    void decode_product(const Statement& s, const std::vector<std::string>& parts) {
        Product product;
        unsigned columns = 0;
        if (parts.size() != 8 || sscanf(parts[4].c_str(), "m64n%uk16", &columns) != 1 || parts[5] != "f32" ||
            parts[6] != parts[7] || (parts[6] != "bf16" && parts[6] != "f16"))
            return fail("unknown instruction");
        if (columns < 8 || columns > 256 || columns % 8) return fail("no number of columns");
        product.columns = columns;
        product.bf16 = parts[6] == "bf16";
        product.a_in_registers = s.operands.size() > 1 && s.operands[1][0] == '{';
        const size_t last = product.a_in_registers ? 7 : 8;
        if (s.operands.size() != last) return fail("another number of operands is expected");
        std::vector<uint32_t> ids;
        for (const std::string& element : elements(s.operands[0])) ids.push_back(product_register(element));
        if (ids.size() != columns / 2) return fail("the vector has another length");
        if (product.a_in_registers) {
            const std::vector<std::string> list = elements(s.operands[1]);
            if (list.size() != 4) return fail("the vector has another length");
            for (const std::string& element : list) ids.push_back(product_register(element));
        } else {
            read(0, s.operands[1], 'd');
        }
        read(1, s.operands[2], 'd');
        read(2, s.operands[3], 'p');
        product.negate_a = decode_flag(s.operands[4], "1", "-1");
        product.negate_b = decode_flag(s.operands[5], "1", "-1");
        product.across_a = !product.a_in_registers && decode_flag(s.operands[6], "0", "1");
        product.across_b = decode_flag(s.operands[last - 1], "0", "1");
        now_.immediate = int64_t(code_.products.size());
        now_.run = product_handler();
        code_.products.push_back(product);
        product_ids_.push_back(std::move(ids));
    }

    void resolve_branches() {
        for (const auto& [at, label] : branches_) {
            auto found = body_.labels.find(label);
            if (found == body_.labels.end()) return fail("there is no label " + label);
            code_.instructions[at].target = starts_[found->second];
        }
    }

    // ---- slots

    bool is_branch(size_t i) const { return code_.instructions[i].run == branch_handler(); }
    bool ends(size_t i) const {
        const Instruction& in = code_.instructions[i];
        return in.guarded == Instruction::always && (is_branch(i) || in.run == exit_handler());
    }

    void touch(uint32_t id, size_t at) {
        Value& v = values_[id];
        v.first = std::min(v.first, uint32_t(at));
        v.last = std::max(v.last, uint32_t(at));
    }

    // Extends each value's interval over the blocks through which it lives.
    void find_intervals() {
        const size_t n = code_.instructions.size(), words = (values_.size() + 63) / 64;
        std::vector<uint32_t> block_of(n), starts;
        std::vector<bool> leader(n + 1);
        leader[0] = true;
        for (size_t i = 0; i < n; ++i) {
            if (is_branch(i)) leader[code_.instructions[i].target] = true;
            if (is_branch(i) || ends(i)) leader[i + 1] = true;
        }
        for (size_t i = 0; i < n; ++i) {
            if (leader[i]) starts.push_back(uint32_t(i));
            block_of[i] = uint32_t(starts.size() - 1);
        }
        starts.push_back(uint32_t(n));
        const size_t blocks = starts.size() - 1;
        using Bits = std::vector<uint64_t>;
        std::vector<Bits> in(blocks, Bits(words)), out(blocks, Bits(words)), used(blocks, Bits(words)),
            set(blocks, Bits(words));
        auto test = [](const Bits& b, uint32_t id) { return b[id / 64] >> (id % 64) & 1; };
        auto mark = [](Bits& b, uint32_t id) { b[id / 64] |= uint64_t(1) << (id % 64); };
        for (size_t b = 0; b < blocks; ++b) {
            for (size_t i = starts[b]; i < starts[b + 1]; ++i) {
                const Bound& bound = bounds_[i];
                for (int k = 0; k < bound.read_count; ++k) {
                    if (!test(set[b], bound.reads[k])) mark(used[b], bound.reads[k]);
                    touch(bound.reads[k], i);
                }
                for (int k = 0; k < bound.write_count; ++k) {
                    touch(bound.writes[k], i);
                    // A guarded write leaves the old value in some lanes.
                    if (code_.instructions[i].guarded == Instruction::always) mark(set[b], bound.writes[k]);
                }
            }
            in[b] = used[b];
        }
        for (bool changed = true; changed;) {
            changed = false;
            for (size_t b = blocks; b--;) {
                const size_t last = starts[b + 1] - 1;
                auto join = [&](size_t successor) {
                    if (successor >= blocks) return;
                    for (size_t k = 0; k < words; ++k) out[b][k] |= in[successor][k];
                };
                if (is_branch(last)) join(block_of[code_.instructions[last].target]);
                if (!ends(last)) join(b + 1);
                for (size_t k = 0; k < words; ++k) {
                    const uint64_t next = used[b][k] | (out[b][k] & ~set[b][k]);
                    changed |= next != in[b][k];
                    in[b][k] = next;
                }
            }
        }
        for (size_t b = 0; b < blocks; ++b) {
            for (size_t k = 0; k < words; ++k) {
                for (uint64_t rest = in[b][k]; rest; rest &= rest - 1)
                    touch(uint32_t(k * 64) + uint32_t(__builtin_ctzll(rest)), starts[b]);
                for (uint64_t rest = out[b][k]; rest; rest &= rest - 1)
                    touch(uint32_t(k * 64) + uint32_t(__builtin_ctzll(rest)), starts[b + 1] - 1);
            }
        }
    }

    void assign_slots() {
        find_intervals();
        std::vector<uint32_t> order;
        for (uint32_t id = 0; id < values_.size(); ++id) {
            Value& v = values_[id];
            if (v.kept) {
                v.first = 0;
                v.last = kNone;
            }
            if (v.first != kNone) order.push_back(id);
        }
        std::stable_sort(order.begin(), order.end(),
                         [&](uint32_t a, uint32_t b) { return values_[a].first < values_[b].first; });
        // Slots are shared within a kind only: a half of another register would not be independent of its lanes.
        std::map<char, std::vector<uint32_t>> free;
        std::multimap<uint32_t, uint32_t> active;  // by last use
        for (uint32_t id : order) {
            Value& v = values_[id];
            while (!active.empty() && active.begin()->first < v.first) {
                const Value& gone = values_[active.begin()->second];
                free[gone.kind].push_back(gone.slot);
                active.erase(active.begin());
            }
            std::vector<uint32_t>& list = free[v.kind];
            if (!list.empty()) {
                v.slot = uint16_t(list.back());
                list.pop_back();
            } else {
                v.slot = uint16_t(code_.slots);
                code_.slots += uint32_t(slots_of(v.kind));
                if (code_.slots > 0xffff) return fail("too many registers");
            }
            active.insert({v.last, id});
        }
        for (size_t i = 0; i < code_.instructions.size(); ++i) {
            Instruction& in = code_.instructions[i];
            for (int k = 0; k < kOperands; ++k) {
                const uint32_t id = all_ids_[i * kOperands + size_t(k)];
                if (id != kNone) in.slot[k] = values_[id].slot;
            }
            if (guards_[i] != kNone) in.guard = values_[guards_[i]].slot;
        }
        for (size_t i = 0; i < code_.products.size(); ++i) {
            Product& product = code_.products[i];
            for (size_t k = 0; k < product_ids_[i].size(); ++k) {
                const uint16_t slot = values_[product_ids_[i][k]].slot;
                if (k < product.columns / 2) {
                    product.sums.push_back(slot);
                } else {
                    product.a[k - product.columns / 2] = slot;
                }
            }
        }
        for (const auto& [key, id] : constants_)
            code_.constants.push_back({values_[id].slot, values_[id].kind, std::get<1>(key), std::get<2>(key)});
        for (const auto& [what, axis, id] : special_list_) code_.specials.push_back({what, axis, values_[id].slot});
    }

    const Kernel& kernel_;
    Code& code_;
    Body body_;
    const Statement* statement_ = nullptr;
    std::vector<Value> values_;
    std::unordered_map<std::string, uint32_t> registers_;
    std::unordered_map<std::string, uint32_t> loaded_;  // registers with the parameter of this offset
    std::map<std::string, uint32_t> shared_, specials_;
    std::map<std::tuple<char, uint64_t, Base>, uint32_t> constants_;
    std::vector<std::tuple<Special, int, uint32_t>> special_list_;
    std::vector<std::pair<uint32_t, std::string>> branches_;
    std::vector<std::vector<uint32_t>> product_ids_;
    // Of the instruction in hand, and of all before it.
    Instruction now_;
    Bound bound_;
    uint32_t ids_[kOperands], guard_ = kNone;
    std::vector<Bound> bounds_;
    std::vector<uint32_t> starts_;  // of the statements among the instructions
    std::vector<uint32_t> guards_, all_ids_;
};

}  // namespace

void enter(Table& table, const char* names, Form form) {
    for (const std::string& name : split_list(names, ' ')) table[name] = form;
}

Handler table_entry(const char* name) {
    auto found = table().find(name);
    return found == table().end() ? nullptr : found->second.run;
}

const Code& code_of(Kernel& kernel) {
    if (!kernel.code) {
        kernel.code = std::make_shared<Code>();
        Decoder(kernel, *kernel.code).run();
    }
    return *kernel.code;
}

}  // namespace emu::ptx
