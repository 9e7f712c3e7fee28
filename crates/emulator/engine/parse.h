// The text of a PTX module, taken apart as far as names and scopes go.
//
// A module is read in two steps: its kernels with their parameters and bounds at once, the statements of a kernel when
// it is first launched. Names that an inner block declares are made unique, so a kernel has one flat set of names.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace emu::ptx {

struct Code;

struct Parameter {
    std::string name;
    uint32_t offset, size, align;
};

struct SharedArray {
    std::string name;
    uint32_t align, bytes;
    bool dynamic;  // its size comes with the launch
};

// One instruction as it is written, without its guard.
struct Statement {
    std::string guard;  // a predicate, empty when there is none
    bool unless = false;
    std::string opcode;
    std::vector<std::string> operands;  // a vector in braces and an address in brackets are one operand each
    std::string text;
    const char* file = nullptr;
    int line = 0;
};

struct Body {
    std::map<std::string, std::string> registers;  // name to type; `%r<12>` is expanded
    std::vector<SharedArray> shared;
    std::vector<Statement> statements;
    std::map<std::string, uint32_t> labels;  // to the statement that follows
};

struct Module;

struct Kernel {
    std::string name;
    const Module* module = nullptr;
    std::vector<Parameter> parameters;
    uint32_t parameter_bytes = 0, max_threads = 1024, required[3] = {0, 0, 0};
    uint32_t registers = 0;      // of each thread at its entry; 0 when they are up to the assembler
    std::string text;            // between the braces of its body
    std::shared_ptr<Code> code;  // once decoded
};

struct Module {
    int version = 0;                    // 90 for sm_90, compute_90a
    std::vector<const char*> files;     // of .file, by number; the names live as long as the process
    std::vector<SharedArray> shared;    // declared outside of kernels
    std::map<std::string, Kernel> kernels;
};

// False, with what is wrong, when the text is not understood.
bool parse_module(const std::string& text, Module& module, std::string& error);
bool parse_body(const Kernel& kernel, Body& body, std::string& error);

// `%r1|%p2`, `{a, b}`, `[a+8]` and the like, taken apart.
std::vector<std::string> split_list(const std::string& text, char separator);
std::string trimmed(const std::string& text);

}  // namespace emu::ptx
