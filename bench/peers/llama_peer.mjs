// llama.cpp, measured for peers.py: the CPU libraries of the npm package node-llama-cpp, driven through its binding.
//
//     node llama_peer.mjs NODE_MODULES FILE.gguf THREADS
//
// Reads a request per line and answers each with a line, both JSON: see peers.py. What is timed is llama_decode with its
// synchronisation, and a hop to a thread of node (some 0.05 ms). Choosing a token is not timed. Batches have at most 512 tokens, as
// llama.cpp has them by default; keys and values are f16, also its default.

import {readFileSync} from "node:fs";
import {createInterface} from "node:readline";
import {join} from "node:path";
import {pathToFileURL} from "node:url";

const [modules, file, threads] = process.argv.slice(2);
const BATCH = 512;
const PACKAGE = join(modules, "node-llama-cpp");

const {getLlama} = await import(pathToFileURL(join(PACKAGE, "dist", "index.js")).href);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", progressLogs: false});
// The binding below the package's own interface: several sequences in one batch, and nothing between it and llama_decode.
const binding = llama._bindings;
const model = new binding.AddonModel(file, {addonExports: binding, gpuLayers: 0, useMmap: true});
if (!(await model.init())) throw new Error(`${file} cannot be loaded`);
const version = JSON.parse(readFileSync(join(PACKAGE, "package.json"), "utf8")).version;
const library = readFileSync("/proc/self/maps", "utf8").match(/libggml-cpu-[a-z0-9]+/);
const greedy = new binding.AddonSampler(model);
greedy.applyConfig({temperature: 0});

const say = value => process.stdout.write(JSON.stringify(value) + "\n");

async function context(sequences, length) {
    const options = {contextSize: sequences * length, batchSize: BATCH, sequences, threads: Number(threads), flashAttention: "auto"};
    const made = new binding.AddonContext(model, options);
    if (!(await made.init())) throw new Error("the context cannot be made");
    return made;
}

async function prompt(on, sequence, ids) {
    let index;
    for (let start = 0; start < ids.length; start += BATCH) {
        const part = Uint32Array.from(ids.slice(start, start + BATCH));
        const last = start + BATCH >= ids.length;
        on.initBatch(part.length);
        [index] = on.addToBatch(sequence, start, part, Uint32Array.from(last ? [part.length - 1] : []));
        await on.decodeBatch();
    }
    return index;
}

let held, run;

async function setup({phase, prompts, steps, length}) {
    if (held) await held.dispose();
    held = await context(prompts.length, length);
    if (phase === "prefill") {
        run = async () => {
            held.disposeSequence(0);
            const taken = await timed(() => prompt(held, 0, prompts[0]));
            return {...taken, ids: [await held.sampleToken(taken.value, greedy)]};
        };
    } else {
        for (const [row, ids] of prompts.entries()) await prompt(held, row, ids);
        let at = prompts[0].length;
        run = async () => {
            const taken = await timed(async () => {
                held.initBatch(steps.length);
                const rows = steps.map((id, row) => held.addToBatch(row, at, Uint32Array.of(id), Uint32Array.of(0))[0]);
                await held.decodeBatch();
                return rows;
            });
            at += 1;
            const ids = [];
            for (const row of taken.value) ids.push(await held.sampleToken(row, greedy));
            return {...taken, ids};
        };
    }
    return await run();
}

async function timed(work) {
    const used = process.cpuUsage(), started = process.hrtime.bigint();
    const value = await work();
    const wall = Number(process.hrtime.bigint() - started) * 1e-9, {user, system} = process.cpuUsage(used);
    return {wall, processor: (user + system) * 1e-6, value};
}

say({about: `llama.cpp ${llama.llamaCppRelease.release} (node-llama-cpp ${version})`, library: library?.[0], features: llama.systemInfo});
for await (const line of createInterface({input: process.stdin})) {
    const request = JSON.parse(line);
    try {
        if (request.setup) {
            const {wall, ids} = await setup(request.setup);
            say({wall, ids});
        } else {
            const runs = [];
            for (let i = 0; i < request.turn; i++) runs.push(await run());
            say({wall: runs.map(run => run.wall), processor: runs.map(run => run.processor), ids: runs.map(run => run.ids)});
        }
    } catch (error) {
        say({error: String(error)});
    }
}
process.exit(0);
