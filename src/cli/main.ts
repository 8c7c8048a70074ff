#!/usr/bin/env node
/** The `lunette` program. Nothing here but the process: commands live in commands/, and run in tests without this file. */
import { processContext } from './context.ts';
import { runCli } from './program.ts';

process.title = 'lunette';
process.exitCode = await runCli(process.argv.slice(2), processContext());
