// Follows a run on a record's page: asks every second whether anything of it has changed, has the page rendered again
// when it has, and puts what is different in its place. So the page always shows what a reload would.
"use strict";

(() => {
    const EVERY = 1_000;
    // After an answer that did not come, twice as long each time, up to this.
    const MOST = 8_000;
    const PATIENCE = 20_000;
    const SAID = {
        following: "Following this run: the page shows what happens.",
        away: "The server does not answer; trying again.",
        out: "No longer followed: reload the page to sign in again.",
        gone: "No longer followed: this is not there any more, or not for you.",
    };

    class Over extends Error {}

    let mark = "";
    let pause = EVERY;
    let timer = 0;
    let isAsking = false;

    const live = () => document.getElementById("live");

    function tell(state) {
        const line = live()?.querySelector("p");
        if (line && line.textContent !== SAID[state]) {
            line.textContent = SAID[state];
        }
    }

    function say(text) {
        const shown = live()?.querySelector("pre");
        if (!shown || shown.textContent === text) {
            return;
        }
        const isAtEnd = shown.hidden || shown.scrollHeight - shown.scrollTop - shown.clientHeight < 40;
        shown.hidden = !text;
        shown.textContent = text;
        if (isAtEnd) {
            shown.scrollTop = shown.scrollHeight;
        }
    }

    async function get(url) {
        const answer = await fetch(url, { redirect: "manual", signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
        if (answer.type === "opaqueredirect") {
            throw new Over("out"); // to where one signs in
        }
        if (answer.status >= 400 && answer.status < 500 && answer.status !== 429) {
            throw new Over("gone");
        }
        if (!answer.ok) {
            throw new Error(`it answers ${answer.status}`);
        }
        return answer;
    }

    async function look() {
        const url = new URL(live().dataset.url, location.href);
        url.searchParams.set("mark", mark);
        const answer = await get(url);
        if (answer.status === 204) {
            return;
        }
        const found = await answer.json();
        if (!mark.startsWith(`${found.rows} `)) {
            const page = new DOMParser().parseFromString(await (await get(location.pathname + location.search)).text(), "text/html");
            const fresh = page.getElementById("content");
            if (!fresh) {
                throw new Error("it answers another page");
            }
            settle(document.getElementById("content"), fresh);
        }
        mark = found.mark;
        say(found.text);
    }

    // Makes `old` like `fresh`, and leaves alone what is like it already: what is chosen, open or scrolled stays so.
    function settle(old, fresh) {
        if (old.isEqualNode(fresh)) {
            return;
        }
        if (old.nodeType !== Node.ELEMENT_NODE) {
            old.replaceWith(fresh);
            return;
        }
        for (const { name } of [...old.attributes]) {
            if (!fresh.hasAttribute(name) && !isTheReaders(old, name)) {
                old.removeAttribute(name);
            }
        }
        for (const { name, value } of fresh.attributes) {
            if (old.getAttribute(name) !== value && !isTheReaders(old, name)) {
                old.setAttribute(name, value);
            }
        }
        if (old.id === "live") {
            return; // its text is this script's
        }
        const rest = parts(old);
        for (const wanted of parts(fresh)) {
            const place = rest.findIndex((one) => isThatOf(one, wanted));
            if (place < 0) {
                old.insertBefore(wanted, rest[0] ?? null);
                continue;
            }
            const [same] = rest.splice(place, 1);
            if (place > 0) {
                old.insertBefore(same, rest[0]);
            }
            settle(same, wanted);
        }
        for (const one of rest) {
            one.remove();
        }
    }

    // What a node holds, without the space between.
    const parts = (node) => [...node.childNodes].filter((one) => one.nodeType !== Node.TEXT_NODE || one.data.trim());
    const isThatOf = (one, wanted) => one.nodeName === wanted.nodeName && (one.id ?? "") === (wanted.id ?? "");
    const isTheReaders = (element, name) => element.nodeName === "DETAILS" && name === "open";

    async function follow() {
        clearTimeout(timer);
        if (isAsking || document.hidden || !live()) {
            return; // what is not seen is not asked for; once it is seen again, at once
        }
        isAsking = true;
        try {
            await look();
            pause = EVERY;
            tell("following");
        } catch (error) {
            if (error instanceof Over) {
                tell(error.message);
                document.removeEventListener("visibilitychange", follow);
                return;
            }
            pause = Math.min(2 * pause, MOST);
            tell("away");
        } finally {
            isAsking = false;
        }
        timer = setTimeout(follow, pause);
    }

    document.addEventListener("visibilitychange", follow);
    follow();
})();
