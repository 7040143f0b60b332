// Greedy generation by node-llama-cpp: node other_runtimes.mjs FOLDER MODEL PROMPTS COUNT
// FOLDER is where it is installed; PROMPTS are lists of tokens, as JSON. Prints the tokens it adds to each, and its llama.cpp.
import {join, resolve} from "node:path";
import {pathToFileURL} from "node:url";

const [folder, modelPath, prompts, count] = process.argv.slice(2);
const index = join(resolve(folder), "node_modules/node-llama-cpp/dist/index.js");
const {getLlama} = await import(pathToFileURL(index).href);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath});
const answers = [];
for (const prompt of JSON.parse(prompts)) {
    const context = await model.createContext({contextSize: 512, threads: 1});
    const tokens = [];
    for await (const token of context.getSequence().evaluate(prompt, {temperature: 0})) {
        if (tokens.push(token) >= Number(count)) break;
    }
    answers.push(tokens);
    await context.dispose();
}
console.log(JSON.stringify({release: llama.llamaCppRelease.release, answers}));
process.exit(0);
