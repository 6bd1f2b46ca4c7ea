// Builds assembly/policy.ts to build/policy.wasm.
//
// A policy may have no start function, and the compiler gives every module one, which sets up its
// heap. So it is exported under a name instead, and what the host calls is wrapped: whichever
// export is called first runs it, once.

import { readFileSync, writeFileSync } from "node:fs";
import asc from "assemblyscript/asc";
import binaryen from "binaryen";

const file = "build/policy.wasm";
const { error, stderr } = await asc.main([
  "assembly/policy.ts", "--outFile", file,
  "--optimizeLevel", "3", "--shrinkLevel", "1", "--noAssert",
  // Nothing is freed: the memory is thrown away after every call. Without `abort` there is no import.
  "--runtime", "stub", "--use", "abort=",
  "--initialMemory", "1", "--maximumMemory", "64",
  "--exportStart", "start",
]);
if (error) {
  console.error(stderr.toString(), error.message);
  process.exit(1);
}

const module = binaryen.readBinary(readFileSync(file));
const { none, i32, Features } = binaryen;
module.setFeatures(Features.MutableGlobals | Features.SignExt | Features.NontrappingFPToInt
  | Features.BulkMemory | Features.BulkMemoryOpt | Features.Multivalue);
const target = (name) => binaryen.getExportInfo(module.getExport(name)).value;
module.addGlobal("begun", i32, true, module.i32.const(0));
module.addFunction("begin", none, none, [], module.if(
  module.i32.eqz(module.global.get("begun", i32)),
  module.block(null, [
    module.global.set("begun", module.i32.const(1)),
    module.call(target("start"), [], none),
  ]),
));
for (const name of ["tidegate_abi", "tidegate_alloc", "tidegate_describe", "evaluate"]) {
  const inner = target(name);
  const { params, results } = binaryen.getFunctionInfo(module.getFunction(inner));
  const given = binaryen.expandType(params).map((type, index) => module.local.get(index, type));
  module.addFunction(`begun:${name}`, params, results, [], module.block(null, [
    module.call("begin", [], none),
    module.call(inner, given, results),
  ], results));
  module.removeExport(name);
  module.addFunctionExport(`begun:${name}`, name);
}
module.removeExport("start");
if (!module.validate()) process.exit(1);
writeFileSync(file, module.emitBinary());
