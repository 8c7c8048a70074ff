/** The project's own source as tests see it: which files there are, and what each imports. */

import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import ts from 'typescript';
import { PROJECT_ROOT } from './process.ts';

export interface ImportFound {
  /** As written: `./x.ts`, `node:fs`, `lru-cache`. */
  readonly specifier: string;
  /** The file it names, relative to the project's root; undefined for a package or a module of Node. */
  readonly target: string | undefined;
  /** `import type`: gone at run time. */
  readonly typeOnly: boolean;
  /** `import(…)`: loaded when it is reached. */
  readonly dynamic: boolean;
  readonly line: number;
}

/** All files that are tracked or would be, with `/` and relative to the project's root, sorted. */
export function projectFiles(): string[] {
  const listed = execFileSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], {
    cwd: PROJECT_ROOT,
    encoding: 'utf8',
    maxBuffer: 2 ** 26,
  });
  return [...new Set(listed.split('\0'))].filter((path) => path !== '' && readText(path) !== undefined).sort();
}

/** The text of a file; undefined for one that is gone. */
export function readText(path: string): string | undefined {
  try {
    return readFileSync(join(PROJECT_ROOT, path), 'utf8');
  } catch {
    return undefined; // Listed by git, deleted in the working tree; or a folder.
  }
}

/** Every import, export-from, import() and require() of a TypeScript text. `path` is relative to the project's root. */
export function importsOf(path: string, text: string): ImportFound[] {
  const source = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  const found: ImportFound[] = [];
  const add = (node: ts.Node, specifier: ts.Node | undefined, typeOnly: boolean, dynamic: boolean): void => {
    if (specifier === undefined || !ts.isStringLiteralLike(specifier)) return;
    const { text: name } = specifier;
    found.push({
      specifier: name,
      target: name.startsWith('.') ? normalize(join(dirname(path), name)).replaceAll('\\', '/') : undefined,
      typeOnly,
      dynamic,
      line: source.getLineAndCharacterOfPosition(node.getStart()).line + 1,
    });
  };
  const visit = (node: ts.Node): void => {
    if (ts.isImportDeclaration(node)) {
      add(node, node.moduleSpecifier, node.importClause?.isTypeOnly === true || onlyTypesNamed(node), false);
    } else if (ts.isExportDeclaration(node)) {
      add(node, node.moduleSpecifier, node.isTypeOnly, false);
    } else if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) {
      add(node, node.argument.literal, true, false);
    } else if (ts.isCallExpression(node)) {
      const { expression } = node;
      const isImport = expression.kind === ts.SyntaxKind.ImportKeyword;
      const isRequire = ts.isIdentifier(expression) && expression.text === 'require';
      if (isImport || isRequire) add(node, node.arguments[0], false, true);
    }
    ts.forEachChild(node, visit);
  };
  visit(source);
  return found;
}

/** `import { type A, type B } from …`: erased names only, though the module itself is still loaded under verbatimModuleSyntax. */
function onlyTypesNamed(node: ts.ImportDeclaration): boolean {
  const bindings = node.importClause?.namedBindings;
  if (node.importClause?.name !== undefined || bindings === undefined || !ts.isNamedImports(bindings)) return false;
  return bindings.elements.length > 0 && bindings.elements.every((element) => element.isTypeOnly);
}
