// Reads what nvcc writes, not all of PTX: no functions, no module-level data but shared memory. PTX ISA, sections 4
// (syntax) and 5 (state spaces), 11 (directives).
#include "parse.h"

#include <cstdlib>
#include <cstring>
#include <set>
#include <tuple>

namespace emu::ptx {
namespace {

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool is_name(char c) { return isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.'; }

std::string without_comments(const std::string& text) {
    std::string out;
    out.reserve(text.size());
    bool quoted = false;  // a path may have two slashes
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '"' || text[i] == '\n') quoted = text[i] == '"' && !quoted;
        if (quoted) {
            out += text[i];
        } else if (text[i] == '/' && i + 1 < text.size() && text[i + 1] == '/') {
            while (i < text.size() && text[i] != '\n') ++i;
            out += '\n';
        } else if (text[i] == '/' && i + 1 < text.size() && text[i + 1] == '*') {
            const size_t end = text.find("*/", i + 2);
            i = end == std::string::npos ? text.size() : end + 1;
            out += ' ';
        } else {
            out += text[i];
        }
    }
    return out;
}

uint32_t bytes_of(const std::string& type) {
    const size_t digit = type.find_first_of("0123456789");
    return digit == std::string::npos ? 1 : uint32_t(atoi(type.c_str() + digit)) / 8;
}

// Behind a directive: `.align 16 .b8 name[512]`, and `.u64 name`, with or without `.ptr` and its alignment.
struct Variable {
    std::string name;
    uint32_t align = 0, bytes = 0;
    bool open = false;  // `name[]`
};

Variable variable(const std::string& text) {
    Variable v;
    uint32_t element = 1, count = 1;
    bool pointer = false;
    size_t i = 0;
    while (i < text.size()) {
        while (i < text.size() && is_space(text[i])) ++i;
        size_t end = i;
        while (end < text.size() && !is_space(text[end])) ++end;
        const std::string word = text.substr(i, end - i);
        i = end;
        if (word == ".ptr") {
            pointer = true;
        } else if (word == ".align") {
            // The alignment of what a pointer points to is not the parameter's.
            const uint32_t align = uint32_t(strtoul(text.c_str() + i, nullptr, 10));
            if (!pointer) v.align = align;
            while (i < text.size() && is_space(text[i])) ++i;
            while (i < text.size() && !is_space(text[i])) ++i;
        } else if (!word.empty() && word[0] == '.') {
            if (isdigit(static_cast<unsigned char>(word.back()))) element = bytes_of(word);
        } else if (!word.empty()) {
            const size_t bracket = word.find('[');
            v.name = word.substr(0, bracket);
            if (bracket != std::string::npos) {
                v.open = word[bracket + 1] == ']';
                count = uint32_t(strtoul(word.c_str() + bracket + 1, nullptr, 10));
            }
        }
    }
    if (!v.align) v.align = element;
    v.bytes = element * count;
    return v;
}

SharedArray shared_array(const std::string& text) {
    const Variable v = variable(text);
    return {v.name, v.align, v.open ? 0 : v.bytes, v.open};
}

// Never destroyed: faults and instructions hold what it returns, also while the process ends.
const char* interned(const std::string& name) {
    static std::set<std::string>& names = *new std::set<std::string>;
    return names.insert(name).first->c_str();
}

void read_files(const std::string& text, Module& module) {
    for (size_t i = text.find(".file"); i != std::string::npos; i = text.find(".file", i + 5)) {
        const size_t number = strtoul(text.c_str() + i + 5, nullptr, 10);
        const size_t open = text.find('"', i), close = text.find('"', open + 1);
        if (open == std::string::npos || close == std::string::npos || number > 10000) return;
        if (module.files.size() <= number) module.files.resize(number + 1);
        module.files[number] = interned(text.substr(open + 1, close - open - 1));
    }
}

// Everything before an entry: shared memory of the module. Other data would have to be initialised and given addresses.
bool read_declarations(const std::string& text, Module& module, std::string& error) {
    for (const char* unknown : {".const", ".global", ".func", ".tex"}) {
        const size_t at = text.find(unknown);
        if (at != std::string::npos && is_space(text[at + strlen(unknown)]))
            return error = std::string("the directive ") + unknown + " is not supported", false;
    }
    for (size_t i = text.find(".shared"); i != std::string::npos; i = text.find(".shared", i + 7)) {
        const size_t end = text.find(';', i);
        if (end == std::string::npos) break;
        module.shared.push_back(shared_array(text.substr(i + 7, end - i - 7)));
    }
    return true;
}

void read_parameters(const std::string& text, Kernel& kernel) {
    for (const std::string& item : split_list(text, ',')) {
        const size_t at = item.find(".param");
        if (at == std::string::npos) continue;
        const Variable v = variable(item.substr(at + 6));
        const uint32_t offset = (kernel.parameter_bytes + v.align - 1) / v.align * v.align;
        kernel.parameters.push_back({v.name, offset, v.bytes, v.align});
        kernel.parameter_bytes = offset + v.bytes;
    }
}

void read_bounds(const std::string& text, Kernel& kernel) {
    auto three = [&](const char* directive, uint32_t* to) {
        const size_t at = text.find(directive);
        if (at == std::string::npos) return false;
        to[0] = to[1] = to[2] = 1;
        sscanf(text.c_str() + at + strlen(directive), " %u , %u , %u", to, to + 1, to + 2);
        return true;
    };
    uint32_t most[3], blocks[3] = {1, 1, 1};
    const bool bounded = three(".maxntid", most) || three(".reqntid", most);
    if (bounded) kernel.max_threads = most[0] * most[1] * most[2];
    three(".reqntid", kernel.required);
    // An assembler that sees setmaxnreg gives a thread all that the bounds leave it. It gives 255 at most, and then how
    // many it gives is not known.
    three(".minnctapersm", blocks);
    uint32_t given[3];
    constexpr uint32_t kRegisters = 65536, kUnit = 8, kMost = 256;
    if (three(".maxnreg", given)) {
        kernel.registers = (given[0] + kUnit - 1) / kUnit * kUnit;
    } else if (bounded && kernel.max_threads && blocks[0]) {
        const uint32_t share = kRegisters / kernel.max_threads / blocks[0] / kUnit * kUnit;
        kernel.registers = share < kMost ? share : 0;
    }
}

size_t closing_brace(const std::string& text, size_t open) {
    int depth = 0;
    for (size_t i = open; i < text.size(); ++i) {
        if (text[i] == '{') ++depth;
        if (text[i] == '}' && --depth == 0) return i;
    }
    return std::string::npos;
}

// Reads a body from front to back, with the names of the blocks that are open.
class BodyReader {
   public:
    BodyReader(const Kernel& kernel, Body& body, std::string& error)
        : text_(kernel.text), module_(*kernel.module), body_(body), error_(error) {}

    bool read() {
        open_scope();
        while (skip_space(), at_ < text_.size()) {
            const char c = text_[at_];
            if (c == '{') {
                ++at_;
                open_scope();
            } else if (c == '}') {
                ++at_;
                if (scopes_.size() > 1) scopes_.pop_back();
            } else if (c == ';') {
                ++at_;
            } else if (starts_with(".loc") && is_space(text_[at_ + 4])) {
                read_location();
            } else if (!read_label() && !read_statement()) {
                return false;
            }
        }
        return true;
    }

   private:
    using Names = std::map<std::string, std::string>;  // as written, to unique

    bool starts_with(const char* word) const { return text_.compare(at_, strlen(word), word) == 0; }
    void skip_space() {
        while (at_ < text_.size() && is_space(text_[at_])) ++at_;
    }

    // A block's labels may be branched to before they are defined.
    void open_scope() {
        const bool outermost = scopes_.empty();
        scopes_.emplace_back();
        ++scope_;
        if (outermost) return;
        int depth = 1;
        for (size_t i = at_; i < text_.size() && depth; ++i) {
            if (text_[i] == '{') ++depth;
            if (text_[i] == '}') --depth;
            if (text_[i] != ':' || depth != 1) continue;
            size_t begin = i;
            while (begin > at_ && is_name(text_[begin - 1])) --begin;
            const bool alone = text_[i + 1] != ':' && text_[i - 1] != ':';
            if (alone && begin < i) declare(text_.substr(begin, i - begin));
        }
    }

    std::string declare(const std::string& name) {
        if (scopes_.size() == 1) return name;
        return scopes_.back()[name] = name + "@" + std::to_string(scope_);
    }

    std::string resolved(const std::string& name) const {
        for (size_t i = scopes_.size(); i-- > 1;) {
            auto found = scopes_[i].find(name);
            if (found != scopes_[i].end()) return found->second;
        }
        return name;
    }

    // Every name of an operand, given its unique form.
    std::string with_names(const std::string& operand) const {
        if (scopes_.size() == 1) return operand;
        std::string out;
        for (size_t i = 0; i < operand.size();) {
            size_t end = i;
            while (end < operand.size() && is_name(operand[end])) ++end;
            if (end > i) {
                out += resolved(operand.substr(i, end - i));
                i = end;
            } else {
                out += operand[i++];
            }
        }
        return out;
    }

    struct Place {
        unsigned file = 0, line = 0, column = 0;
        bool operator<(const Place& o) const {
            return std::tie(file, line, column) < std::tie(o.file, o.line, o.column);
        }
    };

    const char* file_name(unsigned number) const {
        return number < module_.files.size() ? module_.files[number] : nullptr;
    }

    // The wrappers around single instructions and the toolkit's own headers say less than who called them.
    bool is_wrapper(unsigned number) const {
        const char* name = file_name(number);
        if (!name) return false;
        const char* slash = strrchr(name, '/');
        return strcmp(slash ? slash + 1 : name, "ptx.cuh") == 0 || strstr(name, "/include/") ||
               strncmp(name, "cuda/", 5) == 0;
    }

    // `.loc 2 59 13, function_name $L__info_string2, inlined_at 2 80 13`.
    void read_location() {
        const size_t end = std::min(text_.find('\n', at_), text_.size());
        const std::string text = text_.substr(at_ + 4, end - at_ - 4);
        at_ = end;
        Place place;
        sscanf(text.c_str(), " %u %u %u", &place.file, &place.line, &place.column);
        const size_t inlined = text.find("inlined_at");
        if (inlined != std::string::npos) {
            Place caller;
            sscanf(text.c_str() + inlined + 10, " %u %u %u", &caller.file, &caller.line, &caller.column);
            callers_[place] = caller;
        } else {
            callers_.erase(place);
        }
        for (int depth = 0; depth < 8 && is_wrapper(place.file) && callers_.count(place); ++depth)
            place = callers_[place];
        file_ = file_name(place.file);
        line_ = int(place.line);
    }

    bool read_label() {
        size_t end = at_;
        while (end < text_.size() && is_name(text_[end])) ++end;
        if (end == at_ || end + 1 >= text_.size() || text_[end] != ':' || text_[end + 1] == ':') return false;
        body_.labels[resolved(text_.substr(at_, end - at_))] = uint32_t(body_.statements.size());
        at_ = end + 1;
        return true;
    }

    bool read_statement() {
        const size_t end = text_.find(';', at_);
        if (end == std::string::npos)
            return error_ = "a statement without its semicolon: " + text_.substr(at_, 60), false;
        const std::string text = trimmed(text_.substr(at_, end - at_));
        at_ = end + 1;
        if (text.compare(0, 4, ".reg") == 0) return read_registers(text.substr(4));
        if (text.compare(0, 7, ".shared") == 0) {
            body_.shared.push_back(shared_array(text.substr(7)));
            return true;
        }
        if (text.compare(0, 7, ".pragma") == 0) return true;
        if (text[0] == '.') return error_ = "the directive " + text + " is not supported", false;
        read_instruction(text);
        return true;
    }

    // `.b32 %r<12>` declares %r0 to %r11; `.pred a, b` two names.
    bool read_registers(const std::string& text) {
        const std::string list = trimmed(text);
        const size_t space = list.find_first_of(" \t");
        if (space == std::string::npos) return error_ = "a declaration of no register: " + text, false;
        const std::string type = list.substr(1, space - 1);
        for (const std::string& item : split_list(list.substr(space), ',')) {
            const size_t range = item.find('<');
            if (range == std::string::npos) {
                body_.registers[declare(item)] = type;
                continue;
            }
            const std::string stem = item.substr(0, range);
            const int count = atoi(item.c_str() + range + 1);
            for (int i = 0; i < count; ++i) body_.registers[declare(stem + std::to_string(i))] = type;
        }
        return true;
    }

    void read_instruction(std::string text) {
        Statement s;
        s.text = text;
        s.file = file_;
        s.line = line_;
        if (text[0] == '@') {
            const size_t end = text.find_first_of(" \t");
            s.unless = text[1] == '!';
            s.guard = resolved(text.substr(s.unless ? 2 : 1, end - (s.unless ? 2 : 1)));
            text = trimmed(text.substr(end));
        }
        const size_t space = text.find_first_of(" \t");
        s.opcode = text.substr(0, space);
        if (space != std::string::npos) {
            for (const std::string& operand : split_list(text.substr(space), ','))
                s.operands.push_back(with_names(operand));
        }
        body_.statements.push_back(std::move(s));
    }

    const std::string& text_;
    const Module& module_;
    Body& body_;
    std::string& error_;
    size_t at_ = 0;
    std::map<Place, Place> callers_;  // of what was inlined, as last said
    std::vector<Names> scopes_;
    int scope_ = 0;
    const char* file_ = nullptr;
    int line_ = 0;
};

}  // namespace

std::string trimmed(const std::string& text) {
    const size_t begin = text.find_first_not_of(" \t\r\n"), end = text.find_last_not_of(" \t\r\n");
    return begin == std::string::npos ? "" : text.substr(begin, end - begin + 1);
}

std::vector<std::string> split_list(const std::string& text, char separator) {
    std::vector<std::string> items;
    int depth = 0;
    size_t begin = 0;
    for (size_t i = 0; i <= text.size(); ++i) {
        const char c = i < text.size() ? text[i] : separator;
        if (c == '{' || c == '[') ++depth;
        if (c == '}' || c == ']') --depth;
        if (c != separator || (depth && i < text.size())) continue;
        std::string item = trimmed(text.substr(begin, i - begin));
        if (!item.empty()) items.push_back(std::move(item));
        begin = i + 1;
    }
    return items;
}

bool parse_module(const std::string& raw, Module& module, std::string& error) {
    const std::string text = without_comments(raw);
    const size_t target = text.find(".target");
    if (target == std::string::npos) return error = "no .target: this is not PTX", false;
    const size_t digits = text.find_first_of("0123456789", target);
    if (digits != std::string::npos) module.version = atoi(text.c_str() + digits);
    read_files(text, module);
    size_t at = 0;
    for (;;) {
        const size_t entry = text.find(".entry", at);
        const size_t end = entry != std::string::npos ? entry : std::min(text.find(".section", at), text.size());
        if (!read_declarations(text.substr(at, end - at), module, error)) return false;
        if (entry == std::string::npos) return true;
        size_t name = entry + 6;
        while (name < text.size() && is_space(text[name])) ++name;
        size_t name_end = name;
        while (name_end < text.size() && is_name(text[name_end])) ++name_end;
        const size_t open = text.find('{', name_end);
        const size_t close = open == std::string::npos ? open : closing_brace(text, open);
        if (close == std::string::npos) return error = "a kernel without its closing brace", false;
        Kernel& kernel = module.kernels[text.substr(name, name_end - name)];
        kernel.name = text.substr(name, name_end - name);
        kernel.module = &module;
        const size_t list = text.find('(', name_end);
        if (list < open) read_parameters(text.substr(list + 1, text.find(')', list) - list - 1), kernel);
        read_bounds(text.substr(name_end, open - name_end), kernel);
        kernel.text = text.substr(open + 1, close - open - 1);
        at = close + 1;
    }
}

bool parse_body(const Kernel& kernel, Body& body, std::string& error) { return BodyReader(kernel, body, error).read(); }

}  // namespace emu::ptx
